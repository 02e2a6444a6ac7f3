"""Video codecs as anchors, one intra picture through ffmpeg (of imageio-ffmpeg): elementary streams.

RGB goes to 10-bit Y'CbCr of BT.709, full range, and comes back the same way: losses of that are the codec's.
"""

from __future__ import annotations

import functools
import subprocess

import numpy as np

from ..errors import UsageError

#: codec -> format of samples, container of the stream, options but for the quantizer
HEVC = ("yuv444p10le", "hevc", ("-c:v", "libx265", "-preset", "slow", "-tune", "psnr"))
VVC = ("yuv420p10le", "vvc", ("-c:v", "libvvenc", "-preset", "medium", "-qpa", "0"))
_TO_YUV = "scale=flags=accurate_rnd+full_chroma_int+bicubic:out_color_matrix=bt709:out_range=full"
_TO_RGB = "scale=flags=accurate_rnd+full_chroma_int+bicubic:in_color_matrix=bt709:in_range=full"


@functools.cache
def _ffmpeg() -> str:
    try:
        from imageio_ffmpeg import get_ffmpeg_exe
    except ImportError:
        raise UsageError("HEVC and VVC need imageio-ffmpeg: pip install 'rdquant[anchors]'") from None
    return str(get_ffmpeg_exe())


def _run(arguments: tuple[str, ...], given: bytes) -> bytes:
    command = [_ffmpeg(), "-hide_banner", "-loglevel", "error", *arguments]
    done = subprocess.run(command, input=given, capture_output=True)
    if done.returncode or not done.stdout:
        raise UsageError(f"ffmpeg failed: {done.stderr.decode(errors='replace').strip()[-300:]}")
    return done.stdout


def encode(rgb: np.ndarray, qp: int, codec: tuple[str, str, tuple[str, ...]]) -> bytes:
    """A stream of one picture, whose sides are made even by repeating the last row and column."""
    samples, container, options = codec
    rgb = np.pad(rgb, ((0, rgb.shape[0] % 2), (0, rgb.shape[1] % 2), (0, 0)), mode="edge")
    size = f"{rgb.shape[1]}x{rgb.shape[0]}"
    source = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-i", "-", "-frames:v", "1", "-vf", _TO_YUV)
    if container == "hevc":
        options = (*options, "-x265-params", f"qp={qp}:keyint=1:info=0:log-level=error")
    else:
        options = (*options, "-qp", str(qp))
    return _run((*source, "-pix_fmt", samples, *options, "-f", container, "-"), rgb.tobytes())


def decode(data: bytes, codec: tuple[str, str, tuple[str, ...]]) -> np.ndarray:
    """``(H, W, 3)`` uint8, sides even."""
    found = _run(
        ("-f", codec[1], "-i", "-", "-frames:v", "1", "-vf", _TO_RGB, "-pix_fmt", "rgb24",
         "-c:v", "ppm", "-f", "image2pipe", "-"), data,
    )  # fmt: skip
    _, width, height, _ = (int(v) if v.isdigit() else 0 for v in found[:40].split(maxsplit=4)[:4])
    return np.frombuffer(found[-3 * width * height :], np.uint8).reshape(height, width, 3)
