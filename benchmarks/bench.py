"""Seconds to decode and to encode: rdquant's engines, CompressAI, and the formats of today, in turns.

    make bench IMAGES=KODAK
    python benchmarks/bench.py --images KODAK --threads 2 [--pictures 4] [--rounds 3] [--untrained 128 192]

In every round each way codes each picture once: crops of 256x256, the pictures as they are, and one of
2048x2048 that they are tiled to. Ways are the float parent; the integer model exactly, unrounded in PyTorch,
and in the engines that are installed; rd-s at quality 50; CompressAI's mean-scale codec of the same widths,
untrained, where it can be imported; and JPEG, WebP and AVIF by Pillow and JPEG XL by imagecodecs, of about as
many bytes as the integer model's. Encoding is that of effort 0, and of the defaults of each library. Medians
over pictures and rounds. ``--untrained``: of mean-scale codecs of these widths, N and M, all untrained, the
pictures as they are alone. It adds its threads to benchmarks/results/bench.json; cold_start.py, large.py have
memory and starts.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from large import tiled
from PIL import AvifImagePlugin, Image

from rdquant.codecs import build
from rdquant.coder import ImageCoder
from rdquant.engines.products import instructions
from rdquant.export.runtimes import PACKAGES, available
from rdquant.files.float_models import save_float
from rdquant.files.images import list_images, read_image
from rdquant.files.integer_models import save_integer
from rdquant.load import open_coder
from rdquant.measure import machine
from rdquant.passes import QuantizeConfig, quantize
from rdquant.pixels import pad_to, to_batch
from rdquant.threads import limit

RESULTS = Path(__file__).parent / "results" / "bench.json"


@dataclass
class Way:
    """``decode`` takes what ``encode`` gives; ``before``: seconds of the last one before its synthesis."""

    encode: Callable[[np.ndarray], Any]
    decode: Callable[[Any], Any]
    before: Callable[[], float] | None = None
    encodes: bool = True


class _Timed:
    """A codec whose synthesis notes when it began."""

    def __init__(self, codec: object) -> None:
        self.codec, self.began = codec, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.codec, name)

    def synthesis(self, *given: Any) -> np.ndarray:
        self.began = time.perf_counter()
        found: np.ndarray = self.codec.synthesis(*given)  # type: ignore[attr-defined]
        return found


def rdquant(name: str, engine: str, encodes: bool = True) -> Way:
    plain = open_coder(name)
    timed = _Timed(plain.codec)
    coder = ImageCoder(timed, plain.fingerprint, plain.profile, quality=plain.quality)  # type: ignore[arg-type]
    started = 0.0

    def decode(data: bytes) -> np.ndarray:
        nonlocal started
        started = time.perf_counter()
        return coder.decode(data, engine=engine)  # type: ignore[arg-type]

    return Way(coder.encode, decode, lambda: timed.began - started, encodes)


def compressai(coder: ImageCoder) -> Way | None:
    """It needs no more of torchvision than a name."""
    import torch

    names = ("torchvision", "torchvision.transforms")
    top, transforms = (types.ModuleType(name) for name in names)
    top.transforms = transforms  # type: ignore[attr-defined]
    sys.modules.update(zip(names, (top, transforms), strict=True))
    try:
        from compressai.models import MeanScaleHyperprior
    except ImportError:
        return None
    torch.manual_seed(0)
    hidden = coder.codec.networks["hyper_analysis"]
    model = MeanScaleHyperprior(hidden.channels()[hidden.output], coder.codec.M).eval()
    model.update()

    @torch.no_grad()
    def encode(rgb: np.ndarray) -> Any:
        return model.compress(torch.from_numpy(to_batch(pad_to(rgb, 64))).float() / 255)

    @torch.no_grad()
    def decode(strings: Any) -> Any:
        return model.decompress(**strings)

    return Way(encode, decode)


def pillow(kind: str, quality: int) -> Way:
    def encode(rgb: np.ndarray) -> bytes:
        handle = io.BytesIO()
        Image.fromarray(rgb).save(handle, kind, quality=quality)
        return handle.getvalue()

    return Way(encode, lambda data: np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def jpeg_xl(quality: int, threads: int) -> Way:
    import imagecodecs

    return Way(
        lambda rgb: imagecodecs.jpegxl_encode(rgb, level=quality, numthreads=threads),
        lambda data: imagecodecs.jpegxl_decode(data, numthreads=threads),
    )


def at_size(make: Callable[[int], Way], pictures: list[np.ndarray], wanted: int) -> Way:
    """The quality whose files have about so many bytes together."""
    low, high = 1, 99
    while low < high:
        middle = (low + high) // 2
        if sum(len(make(middle).encode(p)) for p in pictures) < wanted:
            low = middle + 1
        else:
            high = middle
    return make(low)


def networks(model: str, parent: str) -> dict[str, Way]:
    """A model in floats, in integers, in each engine, and CompressAI's of its widths."""
    engines = ["torch", *(engine for engine in PACKAGES if available(engine))]
    found = {"float": rdquant(parent, "exact"), "exact": rdquant(model, "exact")}
    found |= {engine: rdquant(model, engine, encodes=False) for engine in engines}
    if (other := compressai(open_coder(model))) is not None:
        found["CompressAI"] = other
    return found


def untrained(n: int, m: int, folder: Path) -> tuple[str, str]:
    """A mean-scale codec of random weights: W8A8, calibrated on noise, and float."""
    import torch

    torch.manual_seed(0)
    codec = build("mbt2018-mean", n, m)
    random = np.random.default_rng(0)
    noise = [random.integers(0, 256, (256, 256, 3), dtype=np.uint8) for _ in range(2)]
    model, parent = folder / "untrained.rdqm", folder / "untrained.safetensors"
    save_integer(quantize(codec, noise, QuantizeConfig(), {"lambda": 0.013}), model)
    save_float(codec, parent, {"lambda": 0.013})
    return str(model), str(parent)


def ways_for(pictures: list[np.ndarray], model: str, parent: str, threads: int) -> dict[str, Way]:
    found = networks(model, parent)
    exact = found["exact"]
    found |= {"rd-s, float": rdquant("rd-s", "exact"), "rd-s, exact": rdquant("rd-s-w8a8", "exact")}
    size = sum(len(exact.encode(p)) for p in pictures)
    AvifImagePlugin.DEFAULT_MAX_THREADS = threads
    for kind in ("JPEG", "WEBP", "AVIF"):
        found[kind] = at_size(lambda q, kind=kind: pillow(kind, q), pictures, size)  # type: ignore[misc]
    found["JPEG XL"] = at_size(lambda q: jpeg_xl(q, threads), pictures, size)
    return found


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def measured(ways: dict[str, Way], pictures: list[np.ndarray], rounds: int) -> dict[str, dict[str, float]]:
    """Medians by way."""
    files = {name: [way.encode(p) for p in pictures] for name, way in ways.items()}
    seconds: dict[str, dict[str, list[float]]] = {name: {} for name in ways}

    def once() -> Iterator[tuple[str, str, float]]:
        for i, rgb in enumerate(pictures):
            for name, way in ways.items():
                yield name, "decode", timed(lambda way=way, i=i, name=name: way.decode(files[name][i]))[0]  # type: ignore[misc]
                if way.before is not None:
                    yield name, "before synthesis", way.before()
                if way.encodes:
                    yield name, "encode", timed(lambda way=way, rgb=rgb: way.encode(rgb))[0]  # type: ignore[misc]

    for k in range(rounds + 1):
        for name, stage, taken in once():
            if k:  # the first compiles
                seconds[name].setdefault(stage, []).append(taken)
    found = {name: {stage: median(v) for stage, v in stages.items()} for name, stages in seconds.items()}
    for name, row in found.items():
        if all(isinstance(f, bytes) for f in files[name]):
            row["bytes"] = mean(len(f) for f in files[name])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pictures", type=int, default=4, help="So many of the folder, spread over it.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parent", default="mean-scale-s-0130")
    parser.add_argument("--model", default="mean-scale-s-0130-w8a8")
    parser.add_argument("--untrained", type=int, nargs=2, metavar=("N", "M"))
    args = parser.parse_args()
    limit(args.threads)
    every = list_images(args.images)
    whole = [read_image(every[i * len(every) // args.pictures]) for i in range(args.pictures)]
    sizes = {
        "256x256": [np.ascontiguousarray(p[:256, :256]) for p in whole],
        "768x512": whole,
        "2048x2048": [tiled(whole, 2048)],
    }
    import torch

    with TemporaryDirectory() as folder:
        if args.untrained:
            sizes = {"768x512": whole}
            ways = networks(*untrained(*args.untrained, Path(folder)))
        else:
            ways = ways_for(whole, args.model, args.parent, args.threads)
    torch.set_num_threads(args.threads)
    rows = {}
    for size, pictures in sizes.items():
        rows[size] = measured(ways, pictures, args.rounds if size != "2048x2048" else 1)
        print(size, json.dumps(rows[size], indent=1), flush=True)
    result = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"runs": {}}
    command = (
        f"python benchmarks/bench.py --images KODAK --threads {args.threads} "
        f"--pictures {args.pictures} --rounds {args.rounds}"
    )
    run = {"command": command, "machine": machine(), "instructions": instructions(), "rows": rows}
    if args.untrained:
        n, m = args.untrained
        run["command"] += f" --untrained {n} {m}"
        result["untrained"] = {**run, "N": n, "M": m}
    else:
        result["runs"][str(args.threads)] = {**run, "model": args.model, "parent": args.parent}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
