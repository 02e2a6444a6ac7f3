"""Classical codecs as anchors: real files at swept settings."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import UsageError
from ..files.images import read_image
from .metrics import ms_ssim, psnr
from .results import Curve, ImageResult, Point, machine


@dataclass(frozen=True)
class Anchor:
    """``encode(rgb, setting)`` -> file bytes, more of them for a higher setting; ``decode(bytes)`` ->
    ``(H, W, 3)`` uint8. ``scale``: lowest and highest setting, ``grain`` apart.
    """

    name: str
    description: str
    settings: tuple[float, ...]
    encode: Callable[[np.ndarray, float], bytes]
    decode: Callable[[bytes], np.ndarray]
    scale: tuple[float, float] = (1, 95)
    grain: float = 1


def _pillow(
    fmt: str, **options: Any
) -> tuple[Callable[[np.ndarray, float], bytes], Callable[[bytes], np.ndarray]]:
    def encode(rgb: np.ndarray, setting: float) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(rgb).save(buffer, fmt, quality=int(setting), **options)
        return buffer.getvalue()

    def decode(data: bytes) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))

    return encode, decode


def _imagecodecs() -> Any:
    try:
        import imagecodecs
    except ImportError:
        raise UsageError("JPEG 2000 needs imagecodecs: pip install 'rdquant[anchors]'") from None
    return imagecodecs


def _encode_jpeg2000(rgb: np.ndarray, setting: float) -> bytes:
    return bytes(
        _imagecodecs().jpeg2k_encode(rgb, level=setting, reversible=False, mct=True, codecformat="j2k")
    )


def _decode_jpeg2000(data: bytes) -> np.ndarray:
    return np.asarray(_imagecodecs().jpeg2k_decode(data))


ANCHORS = {
    a.name: a
    for a in (
        Anchor(
            "jpeg",
            "Pillow JPEG, 4:2:0, optimized Huffman tables, quality swept",
            (3, 6, 10, 15, 20, 30, 40, 50, 65, 80, 90, 95),
            *_pillow("JPEG", optimize=True, subsampling="4:2:0"),
        ),
        Anchor(
            "webp",
            "Pillow WebP, lossy, method 6, quality swept",
            (0, 5, 12, 25, 40, 55, 70, 80, 88, 94),
            *_pillow("WEBP", method=6),
            (0, 100),
        ),
        Anchor(
            "jpeg2000",
            "imagecodecs (OpenJPEG), 9/7 wavelet with colour transform, target PSNR swept",
            (25, 26.5, 28, 29.5, 31, 32.5, 34, 36, 38),
            _encode_jpeg2000,
            _decode_jpeg2000,
            (15, 50),
            0.25,
        ),
    )
}


def run_anchor(
    name: str,
    files: list[Path],
    dataset: str,
    progress: Callable[[int, int], None] | None = None,
) -> Curve:
    """Every setting on every picture. Raises `UsageError` for an unknown codec or a missing library."""
    if name not in ANCHORS:
        raise UsageError(f"unknown anchor {name!r}; known: {', '.join(ANCHORS)}")
    anchor = ANCHORS[name]
    pictures = [(path.name, read_image(path)) for path in files]
    points, done, total = [], 0, len(anchor.settings) * len(pictures)
    for setting in anchor.settings:
        images = []
        for file, rgb in pictures:
            start = time.perf_counter()
            data = anchor.encode(rgb, setting)
            middle = time.perf_counter()
            decoded = anchor.decode(data)
            end = time.perf_counter()
            images.append(
                ImageResult(
                    file, rgb.shape[1], rgb.shape[0], len(data), 8 * len(data) / rgb[..., 0].size, None,
                    psnr(rgb, decoded), ms_ssim(rgb, decoded), middle - start, end - middle,
                )
            )  # fmt: skip
            done += 1
            if progress:
                progress(done, total)
        points.append(Point(f"{setting:g}", {"codec": anchor.description, "setting": setting}, images))
    return Curve(name, dataset, points, {"machine": machine()})
