"""What one answer costs, counted and not measured: the same on every machine."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from app.models.spec import ModelSpec
from worker.recognisers.registry import build_empty_module


def count_macs(spec: ModelSpec) -> int:
    """Multiply-accumulate operations of convolutions, products and attention for one image.

    Half the floating-point operations that torch's own counter finds; activations,
    normalisations and pooling are left out, as in the figures that papers give. No weights
    and no image are needed: the network has shapes and no memory.
    """
    module = build_empty_module(spec).eval().to("meta")
    height, width, channels = spec.preprocess.output_shape
    image = torch.empty(1, channels, height, width, device="meta")
    # With gradients: without them attention takes a fused road that the counter does not know.
    with FlopCounterMode(display=False) as counter, torch.enable_grad():
        module(image)
    return int(counter.get_total_flops()) // 2
