"""Importing weights on a real worker: checked, registered, and answering as torchvision does."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sqlalchemy import select
from torchvision import models

from app.db.session import Database
from app.jobs.results import page_results
from app.jobs.states import JobState
from app.jobs.submit import submit_import, submit_predict
from app.jobs.tables import Chunk, Job
from app.locations import ANYWHERE
from app.models.resolve import get_version, resolve_version
from app.models.spec import ModelSpec
from app.models.states import VersionState
from app.settings import Settings
from app.storage.s3 import ObjectStore
from app.uploads.tables import UploadKind
from tests.service import Service, running_service
from worker.recognisers.registry import build_module, default_preprocess
from worker.recognisers.weights import save_weights

ARCH = "squeezenet1_0"
CLASSES = ["cat", "dog", "eel", "fox", "gnu"]
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def service(
    settings: Settings, database: Database, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """A dispatcher, a worker for planning and one for inference without a way out."""
    folder = tmp_path_factory.mktemp("import")
    with (
        pytest.MonkeyPatch.context() as patch,
        running_service(settings, database, folder) as service,
    ):
        # Nobody listens on this port; no answer could come from anywhere else.
        patch.setenv("https_proxy", "http://127.0.0.1:9")
        patch.setenv("TORCH_HOME", str(folder))
        service.start_workers("io", "inference")
        yield service


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    """A network with random weights."""
    torch.manual_seed(7)
    return build_module(ModelSpec(ARCH, tuple(CLASSES), default_preprocess(ARCH))).eval()


@pytest.fixture(scope="module")
def as_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Tensors], bytes]:
    """Writes tensors as safetensors."""
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"

    def write(tensors: Tensors) -> bytes:
        save_weights(tensors, path)
        return path.read_bytes()

    return write


def run_import(service: Service, tenant_id: str, weights: str | bytes, arch: str = ARCH) -> Job:
    """An import job that has ended."""
    if isinstance(weights, bytes):
        weights = service.send(tenant_id, weights, UploadKind.WEIGHTS)
    with service.db.tenant(tenant_id) as session:
        job = submit_import(
            session, tenant_id, model="zoo", arch=arch, weights=weights, classes=CLASSES
        )
    return service.wait_for_end(tenant_id, job.id)


@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
def test_imported_weights_answer_as_torchvision_does_in_float32(
    service: Service,
    database: Database,
    objects: ObjectStore,
    tenant_id: str,
    network: torch.nn.Module,
    as_file: Callable[[Tensors], bytes],
    stored: torch.dtype,
) -> None:
    state = {name: value.to(stored) for name, value in network.state_dict().items()}
    job = run_import(service, tenant_id, as_file(state))
    assert job.state == JobState.SUCCEEDED, job.error
    assert job.result is not None
    assert job.result["dtypes"] == [{torch.float32: "F32", torch.float16: "F16"}[stored]]
    with database.tenant(tenant_id) as session:
        version = resolve_version(session, tenant_id, "zoo@production")
    assert (version.id, version.state) == (job.model_version_id, VersionState.READY)
    assert version.parameter_count == sum(value.numel() for value in network.parameters())
    photos = [photo(seed) for seed in range(4)]
    expected = plain_forward(state, photos)
    found = recognise(service, objects, tenant_id, photos)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def photo(seed: int) -> Image.Image:
    """Coloured patches in an image that is neither square nor as large as the input."""
    patches = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize((400, 300), Image.Resampling.NEAREST)


def plain_forward(state: Tensors, photos: list[Image.Image]) -> np.ndarray[Any, Any]:
    """Softmax scores by torchvision alone, in float32."""
    weights = models.get_model_weights(ARCH)["DEFAULT"]
    network = models.get_model(ARCH, num_classes=len(CLASSES)).eval()
    network.load_state_dict({name: value.float() for name, value in state.items()})
    with torch.inference_mode():
        images = torch.stack([weights.transforms()(image) for image in photos])
        scores: np.ndarray[Any, Any] = network(images).softmax(dim=1).numpy()
    return scores


def recognise(
    service: Service, objects: ObjectStore, tenant_id: str, photos: list[Image.Image]
) -> list[list[float]]:
    """The scores of each photo in the order of the classes."""
    keys = []
    for number, image in enumerate(photos):
        out = io.BytesIO()
        image.save(out, "PNG")
        keys.append(f"{tenant_id}/{number}.png")
        objects.ensure_bucket("photos")
        objects.put("photos", keys[-1], out.getvalue(), "image/png")
    with service.db.tenant(tenant_id) as session:
        job = submit_predict(
            session,
            tenant_id,
            source={"items": [{"key": f"s3://photos/{key}"} for key in keys]},
            model="zoo",
            options={"top_k": len(CLASSES), "threshold": 0.0, "activation": "softmax"},
            own_bucket="darkroom",
            locations=ANYWHERE,
        )
    job = service.wait_for_end(tenant_id, job.id)
    assert job.state == JobState.SUCCEEDED, job.error
    with service.db.tenant(tenant_id) as session:
        rows = page_results(session, tenant_id, job, cursor=None, limit=100).items
    scores = [dict(map(tuple, row.prediction or [])) for row in rows]
    return [[row[name] for name in CLASSES] for row in scores]


def assert_version_failed(db: Database, tenant_id: str, job: Job) -> None:
    assert job.state == JobState.FAILED
    with db.tenant(tenant_id) as session:
        version = get_version(session, tenant_id, str(job.model_version_id))
        attempts = session.scalar(select(Chunk.attempt).where(Chunk.job_id == job.id))
    assert version.state == VersionState.FAILED
    assert attempts == 1


def test_weights_of_another_architecture_are_refused_with_the_list(
    service: Service,
    database: Database,
    tenant_id: str,
    network: torch.nn.Module,
    as_file: Callable[[Tensors], bytes],
) -> None:
    job = run_import(service, tenant_id, as_file(network.state_dict()), "squeezenet1_1")
    assert_version_failed(database, tenant_id, job)
    assert job.error is not None
    assert job.error["code"] == "weights_mismatch"
    faults = {fault["pointer"]: fault["detail"] for fault in job.error["errors"]}
    assert "96×3×7×7" in faults["features.0.weight"]
    assert job.error["errors_total"] >= len(faults) > 5


def with_nan(file: bytes, state: Tensors, write: Callable[[Tensors], bytes]) -> bytes:
    first = next(iter(state))
    return write(state | {first: torch.full_like(state[first], torch.nan)})


def cut(file: bytes, state: Tensors, write: Callable[[Tensors], bytes]) -> bytes:
    return file[: len(file) // 2]


def as_pickle(file: bytes, state: Tensors, write: Callable[[Tensors], bytes]) -> bytes:
    out = io.BytesIO()
    torch.save(state, out)
    return out.getvalue()


def with_more_behind(file: bytes, state: Tensors, write: Callable[[Tensors], bytes]) -> bytes:
    return file + bytes(100)


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (cut, "weights_damaged"),
        (with_more_behind, "weights_damaged"),
        (as_pickle, "weights_unsupported"),
        (with_nan, "weights_not_finite"),
    ],
)
def test_spoiled_weights_are_refused(
    service: Service,
    database: Database,
    tenant_id: str,
    network: torch.nn.Module,
    as_file: Callable[[Tensors], bytes],
    spoil: Callable[[bytes, Tensors, Callable[[Tensors], bytes]], bytes],
    code: str,
) -> None:
    state = network.state_dict()
    job = run_import(service, tenant_id, spoil(as_file(state), state, as_file))
    assert_version_failed(database, tenant_id, job)
    assert job.error is not None
    assert job.error["code"] == code


def test_published_weights_out_of_reach_fail_at_once_with_a_plain_sentence(
    service: Service, database: Database, tenant_id: str
) -> None:
    job = run_import(service, tenant_id, "torchvision:DEFAULT", "resnet18")
    assert_version_failed(database, tenant_id, job)
    assert job.error is not None
    assert job.error["code"] == "weights_unreachable"
    assert models.ResNet18_Weights.DEFAULT.url in job.error["detail"]
    assert "import a safetensors file instead" in job.error["detail"]
