"""What flows between the layers of a float codec, seen on calibration pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..codecs import FloatCodec
from ..errors import CalibrationError
from ..files.images import read_image
from ..pixels import pad_to, to_tensor
from .rounding import gram_matrices

#: positions kept of each tensor, over all pictures
POSITIONS = 60_000


@dataclass
class Observed:
    """Extremes and random positions of one tensor ``(B, C, H, W)``, per channel."""

    low: Tensor | None = None  #: (C,)
    high: Tensor | None = None
    parts: list[Tensor] = field(default_factory=list)

    def add(self, t: Tensor, keep: int, generator: torch.Generator) -> None:
        """Take note of a tensor and keep at most ``keep`` of its positions."""
        rows = t.detach().float().permute(0, 2, 3, 1).reshape(-1, t.shape[1])
        if not bool(torch.isfinite(rows).all()):
            raise CalibrationError(
                "an activation is not finite; the model or a calibration picture is broken"
            )
        low, high = rows.amin(0), rows.amax(0)
        self.low = low if self.low is None else torch.minimum(self.low, low)
        self.high = high if self.high is None else torch.maximum(self.high, high)
        if len(rows) > keep:
            rows = rows[torch.randint(len(rows), (keep,), generator=generator)]
        self.parts.append(rows)

    @property
    def samples(self) -> Tensor:
        """``(P, C)`` float32."""
        return torch.cat(self.parts)

    @property
    def largest(self) -> float:
        """Largest magnitude seen anywhere."""
        assert self.low is not None and self.high is not None
        return max(float(-self.low.min()), float(self.high.max()))


@dataclass
class Calibration:
    """All that conversion knows of the calibration pictures."""

    #: by module name (``g_a.0``: output of module 0 of g_a), and ``y``, ``hyper_input``
    tensors: dict[str, Observed] = field(default_factory=dict)
    #: by convolution: Gram matrix of its inputs, per output phase (`rdquant.weights.rounding`)
    grams: dict[str, list[Tensor]] = field(default_factory=dict)


def observe(
    codec: FloatCodec,
    pictures: list[np.ndarray],
    progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Run the codec with true rounding on ``pictures`` (``(H, W, 3)`` uint8) and watch every layer.

    Raises `CalibrationError` when there are no pictures, or one gives values that are not finite.
    """
    if not pictures:
        raise CalibrationError("no calibration pictures")
    seen = Calibration()
    generator = torch.Generator().manual_seed(0)
    keep = max(1, POSITIONS // len(pictures))
    last_analysis = f"g_a.{len(codec.g_a) - 1}"

    def note(name: str, t: Tensor) -> None:
        seen.tensors.setdefault(name, Observed()).add(t, keep, generator)

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
            note(name, out)
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                new = gram_matrices(module, inputs[0], len(pictures), generator)
                old = seen.grams.get(name)
                seen.grams[name] = new if old is None else [a + b for a, b in zip(old, new, strict=True)]
            if name == last_analysis:
                note("y", out)
                note("hyper_input", codec.hyper_input(out))

        return hook

    handles = [
        module.register_forward_hook(watch(f"{part}.{i}"))
        for part in ("g_a", "g_s", "h_a", "h_s")
        if hasattr(codec, part)
        for i, module in enumerate(getattr(codec, part))
    ]
    try:
        with torch.no_grad():
            for i, pixels in enumerate(pictures):
                x = to_tensor(pad_to(pixels, codec.downsampling)).float() / 255
                codec(x, "round")
                if progress:
                    progress(i + 1, len(pictures))
    finally:
        for handle in handles:
            handle.remove()
    return seen


def load_calibration(files: list[Path], count: int, side: int) -> list[np.ndarray]:
    """Centre crops of at most ``side`` a side from ``count`` pictures spread evenly over ``files``."""
    count = min(count, len(files))
    crops = []
    for path in (files[i * len(files) // count] for i in range(count)):
        p = read_image(path)
        top, left = max(0, (p.shape[0] - side) // 2), max(0, (p.shape[1] - side) // 2)
        crops.append(p[top : top + side, left : left + side])
    return crops
