"""Classical codecs as anchors: real files at swept settings, each kept by the hash of all that decides it."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import UsageError
from ..files.atomic import atomic_write
from ..files.images import read_image
from . import video
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
        raise UsageError("JPEG 2000 and JPEG XL need imagecodecs: pip install 'rdquant[anchors]'") from None
    return imagecodecs


def _avif(rgb: np.ndarray, setting: float) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(
        buffer, "AVIF", quality=int(setting), speed=4, subsampling="4:4:4", max_threads=1
    )
    return buffer.getvalue()


def _encode_jpegxl(rgb: np.ndarray, setting: float) -> bytes:
    return bytes(_imagecodecs().jpegxl_encode(rgb, distance=-setting, effort=7))


def _decode_jpegxl(data: bytes) -> np.ndarray:
    return np.asarray(_imagecodecs().jpegxl_decode(data))


def _video(
    codec: tuple[str, str, tuple[str, ...]],
) -> tuple[Callable[[np.ndarray, float], bytes], Callable[[bytes], np.ndarray]]:
    return lambda rgb, setting: video.encode(rgb, int(-setting), codec), lambda data: video.decode(
        data, codec
    )


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
        Anchor(
            "avif",
            "Pillow AVIF (libavif), 4:4:4, 8 bits, speed 4, quality swept",
            (8, 16, 25, 35, 45, 55, 65, 75),
            _avif,
            _pillow("AVIF")[1],
            (0, 100),
        ),
        Anchor(
            "jpegxl",
            "imagecodecs (libjxl), effort 7, distance swept (settings are negative distances)",
            (-20, -14, -10, -7, -5, -3.5, -2.5, -1.5),
            _encode_jpegxl,
            _decode_jpegxl,
            (-25, -0.5),
            0.25,
        ),
        Anchor(
            "hevc",
            "ffmpeg x265, one intra picture, 4:4:4, 10 bits, slow, tune psnr (settings are negative QPs)",
            (-47, -43, -39, -35, -31, -27, -23),
            *_video(video.HEVC),
            (-51, -10),
        ),
        Anchor(
            "vvc",
            "ffmpeg vvenc, one intra picture, 4:2:0, 10 bits, medium, no perceptual QP "
            "(settings are negative QPs)",
            (-47, -42, -37, -32, -27),
            *_video(video.VVC),
            (-63, -10),
        ),
    )
}


def run_anchor(
    name: str,
    files: list[Path],
    dataset: str,
    progress: Callable[[int, int], None] | None = None,
    cache: Path | None = None,
) -> Curve:
    """Every setting on every picture.

    ``cache``: a folder that keeps what was measured, by the hash of codec, settings, versions and samples.
    Raises `UsageError` for an unknown codec or a missing library.
    """
    if name not in ANCHORS:
        raise UsageError(f"unknown anchor {name!r}; known: {', '.join(ANCHORS)}")
    anchor = ANCHORS[name]
    pictures = [(path.name, read_image(path)) for path in files]
    points, done, total = [], 0, len(anchor.settings) * len(pictures)
    for setting in anchor.settings:
        images = []
        for file, rgb in pictures:
            kept = None if cache is None else cache / f"{_key(anchor, setting, rgb)}.json"
            found = kept and _kept(kept, file)
            if not found:
                found = _measured(anchor, setting, file, rgb)
                if kept is not None:
                    kept.parent.mkdir(parents=True, exist_ok=True)
                    with atomic_write(kept) as handle:
                        handle.write(json.dumps(dataclasses.asdict(found)).encode())
            images.append(found)
            done += 1
            if progress:
                progress(done, total)
        points.append(Point(f"{setting:g}", {"codec": anchor.description, "setting": setting}, images))
    return Curve(name, dataset, points, {"machine": machine()})


def _measured(anchor: Anchor, setting: float, name: str, rgb: np.ndarray) -> ImageResult:
    start = time.perf_counter()
    data = anchor.encode(rgb, setting)
    middle = time.perf_counter()
    decoded = anchor.decode(data)[: rgb.shape[0], : rgb.shape[1]]
    end = time.perf_counter()
    return ImageResult(
        name, rgb.shape[1], rgb.shape[0], len(data), 8 * len(data) / rgb[..., 0].size, None,
        psnr(rgb, decoded), ms_ssim(rgb, decoded), middle - start, end - middle,
    )  # fmt: skip


def _key(anchor: Anchor, setting: float, rgb: np.ndarray) -> str:
    versions = []
    for package in ("pillow", "imagecodecs", "imageio-ffmpeg"):
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            versions.append(f"no {package}")
    text = "\n".join([anchor.name, anchor.description, f"{setting}", *versions, str(rgb.shape)])
    return hashlib.sha256(text.encode() + rgb.tobytes()).hexdigest()


def _kept(path: Path, name: str) -> ImageResult | None:
    """What was measured before; anything else than that is as good as nothing."""
    try:
        return dataclasses.replace(ImageResult(**json.loads(path.read_text())), name=name)
    except (OSError, ValueError, TypeError):
        return None
