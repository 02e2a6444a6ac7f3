"""The main job on photographs that scikit-image bundles: quantize, code to files, decode, report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .. import zoo
from ..console import Size
from ..errors import UsageError
from ..files.float_models import load_float
from ..files.images import write_image
from ..files.integer_models import save_integer
from ..files.model_file import model_description
from ..load import carried, open_coder
from ..measure import Curve, Point, evaluate_image, machine, run_anchor
from ..passes import quantize
from ..report import Inputs, Matched, matched, write_report
from ..report.tables import Table, cell

PARENT = "rd-s"
COLUMNS = (
    "photograph", "size", "float bytes", "W8A8 bytes", "W8A8 bpp",
    "float PSNR", "W8A8 PSNR", "MS-SSIM", "encode s", "decode s",
)  # fmt: skip
#: coded in the demo / calibrated on: no picture is in both
PHOTOGRAPHS = ("astronaut", "coffee", "chelsea")
CALIBRATION = ("rocket", "motorcycle_left", "hubble_deep_field", "ihc")
CROP = 256
QUALITIES = (5, 25, 50, 75, 95)
#: label, model, effort
CURVES = (
    ("float parent", PARENT, 0),
    ("W8A8, integers only", f"{PARENT}-w8a8", 0),
    ("W8A8, effort 1", f"{PARENT}-w8a8", 1),
)


def photographs(names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Pictures that scikit-image ships, ``(H, W, 3)`` uint8. Raises `UsageError` without it."""
    try:
        import skimage
    except ImportError:
        raise UsageError(
            "the demo's photographs come with scikit-image: pip install 'rdquant[report]'"
        ) from None
    folder = Path(skimage.__file__).parent / "data"
    found = {}
    for name in names:
        path = next((p for p in (folder / f"{name}.png", folder / f"{name}.jpg") if p.exists()), None)
        if path is None:
            raise UsageError(f"this scikit-image does not ship its picture {name!r}")
        found[name] = np.asarray(Image.open(path).convert("RGB"))
    return found


def calibration_crops() -> list[np.ndarray]:
    """32 crops, eight a picture, at fixed places; neighbours overlap."""
    crops = []
    for rgb in photographs(CALIBRATION).values():
        bottom, right = rgb.shape[0] - CROP, rgb.shape[1] - CROP
        for top in (0, bottom):
            for left in (0, right // 3, 2 * right // 3, right):
                crops.append(rgb[top : top + CROP, left : left + CROP])
    return crops


def run_demo(out: Path, progress: Callable[[int, int, str], None]) -> tuple[list[list[Any]], Path]:
    """Everything; returns the table's rows and the report's path. Files go to ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    steps, done = 4 + len(CURVES) * len(QUALITIES), 0

    def step(note: str) -> None:
        nonlocal done
        progress(done, steps, note)
        done += 1

    step(f"quantize {PARENT}")
    model = out / f"{PARENT}-w8a8.rdqm"
    parent_path = zoo.find(PARENT)
    if parent_path is None:
        raise UsageError(f"the zoo has no {PARENT}")
    about = carried(model_description(parent_path))
    save_integer(quantize(load_float(parent_path), calibration_crops(), description=about), model)
    coder = open_coder(str(model))
    pictures = photographs(PHOTOGRAPHS)
    coder.encode(next(iter(pictures.values())))  # compiles the kernels, so that times are of coding
    parent = open_coder(PARENT)

    step("write and decode files")
    rows = []
    for name, rgb in pictures.items():
        write_image(out / f"{name}.png", rgb)
        data = coder.encode(rgb)
        (out / f"{name}.rdq").write_bytes(data)
        decoded = coder.decode((out / f"{name}.rdq").read_bytes())
        write_image(out / f"{name}-decoded.png", decoded)
        r, f = evaluate_image(coder, name, rgb), evaluate_image(parent, name, rgb)
        size = f"{rgb.shape[1]}x{rgb.shape[0]}"
        rows.append([name, size, f.bytes, r.bytes, r.bpp, f.psnr, r.psnr, r.ms_ssim, r.encode_s, r.decode_s])

    curves = []
    for curve, name, effort in CURVES:
        measured, whole = [], open_coder(name, effort=effort)
        for quality in QUALITIES:
            step(f"measure {name} at quality {quality}")
            c = whole.at(quality)
            results = [evaluate_image(c, k, v) for k, v in pictures.items()]
            measured.append(Point(f"{name}@{quality}", {}, results))
        curves.append(Curve(curve, "demo", measured, {}))
    step("JPEG and WebP")
    files = [out / f"{name}.png" for name in PHOTOGRAPHS]
    for name, label in (("webp", "WebP"), ("jpeg", "JPEG 4:2:0")):
        classical = run_anchor(name, files, "demo")
        top = max(p.bpp for c in curves for p in c.points)
        inside = [p for p in classical.points if p.bpp < 1.4 * top]
        curves.append(Curve(label, "demo", inside, {}))
    step("report")
    shown = matched(coder, list(pictures.items()))
    path = _report(rows, curves, shown, model, out / "report")
    progress(steps, steps, "")
    return rows, path


def _report(rows: list[list[Any]], curves: list[Curve], shown: list[Matched], model: Path, out: Path) -> Path:
    m = machine()
    intro = (
        f"{PARENT}, quantized to 8-bit weights and activations (integers only, static ranges), coding "
        "photographs to real files. Every file was decoded and compared with the model's own forward pass, "
        f"pixel by pixel. The model file has {Size(model.stat().st_size)}."
    )
    files = Table(
        f"Files. Times are of one run on {m['cpu']}, {m['threads']} thread(s), kernels compiled before.",
        list(COLUMNS),
        [[cell(v) for v in row] for row in rows],
    )
    return write_report(Inputs(curves), out, "rdquant demo", intro, shown, [files])
