"""A recogniser: a network in memory with all that makes its answers mean something."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import torch
from torch import Tensor, nn

from app.errors import InvalidInputError
from app.models.spec import ModelSpec
from worker.recognisers.preprocess import Normalise
from worker.recognisers.registry import build_empty_module
from worker.recognisers.weights import compare_weights, open_weights

_device_locks: dict[str, threading.Lock] = {}
_device_locks_guard = threading.Lock()


def device_lock(device: str) -> threading.Lock:
    """The one lock of a device in this process, whichever recognisers live on it."""
    name = str(torch.device(device))
    if name == "cuda":
        name = "cuda:0"
    with _device_locks_guard:
        return _device_locks.setdefault(name, threading.Lock())


def choose_device(name: str) -> str:
    """The device a setting names; ``auto`` takes CUDA where there is one."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


class Recogniser:
    """A network ready to answer: float32, evaluation mode, on its device.

    ``lock`` is the device's; hold it around :meth:`forward`, so that two chunks of one
    process alternate instead of slowing each other.
    """

    def __init__(self, spec: ModelSpec, module: nn.Module, device: str) -> None:
        self.spec = spec
        self.device = torch.device(device)
        self.lock = device_lock(device)
        #: Images of the largest ImageBatch that the device has memory for; None until one did
        #: not fit.
        self.fitting_images: int | None = None
        if self.device.type == "cuda":
            # Float32 means float32: TF32 convolutions keep ten bits of each number.
            torch.backends.cudnn.allow_tf32 = False
        module = module.eval().requires_grad_(False).to(self.device)
        # The memory order that decoded pixels have anyway; the numbers stay the same.
        self._module = module.to(memory_format=torch.channels_last)
        self._normalise = Normalise(spec.preprocess).to(self.device)
        self.bytes = sum(
            tensor.numel() * tensor.element_size() for tensor in module.state_dict().values()
        )

    @torch.inference_mode()
    def forward(self, pixels: Tensor) -> Tensor:
        """Logits, float32 [n, classes], of decoded pixels, uint8 [n, h, w, 3]."""
        logits: Tensor = self._module(self._normalise(pixels.to(self.device)))
        return logits.to(torch.float32)


def load_recogniser(
    spec: ModelSpec, weights_path: Path, device: str, *, sha256: str | None = None
) -> Recogniser:
    """Build the network of ``spec`` with the weights of a safetensors file.

    Weights stored in half precision are computed with in float32.

    Raises:
        InvalidInputError: ``weights_mismatch``, ``weights_damaged``, or ``weights_changed``
            where the file is not the one whose ``sha256`` is given.
    """
    if sha256 is not None:
        _require_digest(weights_path, sha256)
    module = build_empty_module(spec)
    with open_weights(weights_path) as file:
        compare_weights(file, module)
        names: list[str] = file.keys()
        state = {name: _as_computed(file.get_tensor(name)) for name in names}
    for name, tensor in module.state_dict().items():
        if name not in state:
            # Only counters that no forward pass reads may be missing.
            state[name] = torch.zeros(tensor.shape, dtype=tensor.dtype)
    # Assigned, not copied into: the empty module has no memory to copy into.
    module.load_state_dict(state, assign=True)
    return Recogniser(spec, module, device)


def _as_computed(tensor: Tensor) -> Tensor:
    # A copy even where nothing is converted: the tensor is a view of the mapped file, which
    # another process may replace, and which lives in memory for as long as one view does.
    return tensor.to(torch.float32, copy=True) if tensor.is_floating_point() else tensor.clone()


def _require_digest(path: Path, sha256: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise InvalidInputError(
            f"the weights have the digest {found}, not {sha256}", code="weights_changed"
        )
