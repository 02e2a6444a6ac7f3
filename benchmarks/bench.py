"""Seconds to decode and to encode: rdquant's engines, CompressAI, and the formats of today, in turns.

    make bench IMAGES=KODAK
    python benchmarks/bench.py --images KODAK --threads 2 [--pictures 4] [--rounds 3] [--untrained 128 192]

Each way is a process of its own, so that none waits for another's threads. In every round each codes each
picture once: crops of 256x256, the pictures as they are, and one of 2048x2048 that they are tiled to. Ways
are the float parent; the integer model exactly, unrounded in PyTorch, and in the engines that are installed;
rd-s at quality 50; CompressAI's mean-scale codec of the same widths, untrained, where it can be imported; and
JPEG, WebP and AVIF by Pillow and JPEG XL by imagecodecs, of about as many bytes as the integer model's.
Encoding is that of effort 0, and of the defaults of each library. Medians over pictures and rounds.
``--untrained``: of mean-scale codecs of these widths, N and M, all untrained, the pictures as they are alone.
It adds its threads to benchmarks/results/bench.json; cold_start.py, large.py have memory and starts.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import sys
import time
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
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


def compressai(name: str) -> Way | None:
    """Of the same widths. It needs no more of torchvision than a name."""
    import torch

    coder = open_coder(name)
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


def classical(kind: str, threads: int, pictures: list[np.ndarray], wanted: int) -> Way:
    """At the quality whose files have about so many bytes together."""
    AvifImagePlugin.DEFAULT_MAX_THREADS = threads

    def make(quality: int) -> Way:
        return jpeg_xl(quality, threads) if kind == "JPEG XL" else pillow(kind, quality)

    low, high = 1, 99
    while low < high:
        middle = (low + high) // 2
        if sum(len(make(middle).encode(p)) for p in pictures) < wanted:
            low = middle + 1
        else:
            high = middle
    return make(low)


def networks(model: str, parent: str) -> dict[str, Callable[[], Way | None]]:
    """A model in floats, in integers, in each engine, and CompressAI's of its widths."""
    engines = ["torch", *(engine for engine in PACKAGES if available(engine))]
    return {
        "float": partial(rdquant, parent, "exact"),
        "exact": partial(rdquant, model, "exact"),
        **{engine: partial(rdquant, model, engine, encodes=False) for engine in engines},
        "CompressAI": partial(compressai, model),
    }


def serve(asked: Connection, make: Callable[[], Way | None], threads: int) -> None:
    """A process of one way: says whether it can be made; then, asked with pictures, the bytes of each; with
    the number of one, its seconds by stage. It ends with whom it is asked by.
    """
    limit(threads)
    way = make()
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(threads)
    asked.send(way is not None)
    if way is None:
        return
    pictures: list[np.ndarray] = []
    files: list[Any] = []
    with contextlib.suppress(EOFError):
        while True:
            what = asked.recv()
            if isinstance(what, list):
                pictures, files = what, [way.encode(p) for p in what]
                asked.send([len(f) if isinstance(f, bytes) else None for f in files])
            else:
                asked.send(stages(way, pictures[what], files[what]))


def stages(way: Way, rgb: np.ndarray, data: Any) -> dict[str, float]:
    """Seconds."""
    found = {"decode": seconds_of(lambda: way.decode(data))}
    if way.before is not None:
        found["before synthesis"] = way.before()
    if way.encodes:
        found["encode"] = seconds_of(lambda: way.encode(rgb))
    return found


def begun(makes: Mapping[str, Callable[[], Way | None]], threads: int) -> dict[str, Connection]:
    """A process for each way that can be made: none meets another's threads and memory."""
    spawn, found = multiprocessing.get_context("spawn"), {}
    for name, make in makes.items():
        ours, theirs = spawn.Pipe()
        spawn.Process(target=serve, args=(theirs, make, threads), daemon=True).start()
        if ours.recv():
            found[name] = ours
    return found


def answer(way: Connection, what: Any) -> Any:
    way.send(what)
    return way.recv()


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


def ways_for(pictures: list[np.ndarray], model: str, parent: str, threads: int) -> dict[str, Connection]:
    found = begun(networks(model, parent), threads)
    size = sum(answer(found["exact"], pictures))
    ours = {"rd-s, float": ("rd-s", "exact"), "rd-s, exact": ("rd-s-w8a8", "exact")}
    found |= begun({name: partial(rdquant, *given) for name, given in ours.items()}, threads)
    kinds = ("JPEG", "WEBP", "AVIF", "JPEG XL")
    return found | begun({k: partial(classical, k, threads, pictures, size) for k in kinds}, threads)


def seconds_of(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measured(
    ways: dict[str, Connection], pictures: list[np.ndarray], rounds: int
) -> dict[str, dict[str, float]]:
    """Medians by way."""
    sizes = {name: answer(way, pictures) for name, way in ways.items()}
    seconds: dict[str, dict[str, list[float]]] = {name: {} for name in ways}
    for k in range(rounds + 1):
        for i in range(len(pictures)):
            for name, way in ways.items():
                for stage, taken in answer(way, i).items():
                    if k:  # the first compiles
                        seconds[name].setdefault(stage, []).append(taken)
    found = {name: {stage: median(v) for stage, v in stages.items()} for name, stages in seconds.items()}
    for name, row in found.items():
        if None not in sizes[name]:
            row["bytes"] = mean(sizes[name])
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
    every = list_images(args.images)
    whole = [read_image(every[i * len(every) // args.pictures]) for i in range(args.pictures)]
    sizes = {
        "256x256": [np.ascontiguousarray(p[:256, :256]) for p in whole],
        "768x512": whole,
        "2048x2048": [tiled(whole, 2048)],
    }
    with TemporaryDirectory() as folder:
        if args.untrained:
            sizes = {"768x512": whole}
            ways = begun(networks(*untrained(*args.untrained, Path(folder))), args.threads)
        else:
            ways = ways_for(whole, args.model, args.parent, args.threads)
    limit(args.threads)
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
