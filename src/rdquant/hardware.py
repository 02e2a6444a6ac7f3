"""What a device multiplies well, and what PyTorch does badly on it."""

from __future__ import annotations

import torch


def multiplies_bf16(device: torch.device) -> bool:
    """Whether bfloat16 products are instructions; emulated ones are far slower than float32."""
    return device.type != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def layout(device: torch.device) -> torch.memory_format:
    """Of networks and pictures: channels last, but not where PyTorch's own convolutions stand in for
    oneDNN's, which are slow there.
    """
    return torch.channels_last if multiplies_bf16(device) else torch.contiguous_format
