"""Where the time of an integer network goes: each step, and what its products alone would take at best.

    python benchmarks/stages.py [--model mean-scale-s-0130-w8a8] [--height 512 --width 768] [--rounds 15]

On one thread, for analysis and synthesis: milliseconds of each step (a convolution with what finishes its
accumulators; or a chain of steps that positions go through by themselves), its multiplications, and the
**floor**: these at the rate that the same kernel reaches on a product that stays in the first cache. The best
of all rounds. Writes benchmarks/results/stages.json.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from rdquant.compiled import njit
from rdquant.engines import products
from rdquant.engines.buffers import aligned
from rdquant.engines.chain import Chain, Prepared
from rdquant.engines.fast import plan
from rdquant.load import open_coder
from rdquant.measure import machine
from rdquant.threads import limit

RESULTS = Path(__file__).parent / "results" / "stages.json"
WORDS, TIMES = 64, 20_000
BYTE_KERNELS = (products.BYTES, products.BYTE_TILES)


def best(work: Callable[[], object], rounds: int) -> float:
    """Seconds."""
    found = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return min(found[1:])


@njit(nogil=True)
def _again(n, kernel, vectors, a, stride, taps, words, w, start, c, line):  # type: ignore[no-untyped-def]
    products.prepare(kernel, words)
    for _ in range(n):
        products.product(kernel, vectors, a, stride, taps, 1, words, w, start, 0, c, line)
    products.release(kernel)


def peak(kernel: int, rounds: int) -> float:
    """Multiplications a second of the kernel at its widest, on a product that stays in the first cache."""
    vectors = max(products.POSITIONS[kernel])
    rows, each = products.POSITIONS[kernel][vectors], 4 if kernel in BYTE_KERNELS else 2
    width = products.LANES * vectors
    a = aligned(np.zeros(rows * WORDS * 4, np.uint8))
    w = aligned(np.zeros(width * WORDS * 4 * products.COPIES[kernel], np.uint8))
    taps, start, c = np.zeros(1, np.int64), *(aligned(np.zeros(n, np.int32)) for n in (width, rows * width))
    given = (
        TIMES, kernel, vectors, a.ctypes.data, 4 * WORDS, taps.ctypes.data, WORDS, w.ctypes.data,
        start.ctypes.data, c.ctypes.data, 4 * width,
    )  # fmt: skip
    return TIMES * rows * WORDS * each * width / best(lambda: _again(*given), rounds)


def parts_of(step: Prepared | Chain) -> list[Prepared]:
    return step.steps if isinstance(step, Chain) else [step]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["mean-scale-s-0130-w8a8", "rd-s-w8a8"])
    parser.add_argument("--height", type=int, default=512)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    limit(1)
    kernels = {"words": products.WORD_KERNELS[products.instructions()]}
    if products.instructions() in products.BYTEWISE:
        kernels["bytes"] = products.BYTES
    if products.instructions() == "amx":
        kernels |= {"bytes, tiles": products.BYTE_TILES, "words, tiles": products.WORD_TILES}
    peaks = {name: peak(kernel, args.rounds) for name, kernel in kernels.items()}
    named = {kernel: name for name, kernel in kernels.items()}
    models = {}
    for model in args.model:
        codec = open_coder(model).codec
        networks = {}
        for name in ("analysis", "synthesis"):
            graph, prepared = codec.networks[name], plan(codec.networks[name])
            port = next(iter(graph.inputs.values()))
            scale = 1 if name == "analysis" else codec.stride
            shape = 1, port.channels, args.height // scale, args.width // scale
            x = np.random.default_rng(0).integers(max(port.lo, -999), min(port.hi, 999) + 1, shape)
            rows = []

            def noted(step: Prepared | Chain, values: dict[str, np.ndarray], rows: list = rows) -> None:
                macs, floor = 0, 0.0
                for part in parts_of(step):
                    layer = part.layer
                    if layer is None:
                        continue
                    conv, given = layer.conv, values.get(part.inputs[0])
                    positions = next(iter(values.values())) if given is None else given
                    count = positions.shape[1] * positions.shape[2]
                    count = count if conv.transposed else count // conv.stride**2
                    for own, at in ((layer, count), (layer.then, count * conv.up**2)):
                        if own is None:
                            continue
                        macs += (products_of := at * own.conv.weight.size)
                        if not own.direct:
                            floor += products_of / peaks[named[own.packed.kernel]]
                seconds = best(lambda: step(dict(values)), args.rounds)
                label = parts_of(step)[-1].name
                row = {"step": label, "ms": 1e3 * seconds, "MMAC": macs / 1e6, "floor_ms": 1e3 * floor}
                rows.append(row)
                step(values)

            # the plan's own loop, with each step measured in its place
            whole = prepared._steps
            prepared._steps = [lambda values, valid, step=step: noted(step, values) for step in whole]  # type: ignore[misc]
            prepared.run(x)
            prepared._steps = whole
            whole_time = best(functools.partial(prepared.run, x), args.rounds)
            networks[name] = {"rows": rows, "ms": 1e3 * whole_time}
            for row in rows:
                print(
                    f"{model:24} {name:10} {row['step']:18} {row['ms']:7.2f} ms, floor {row['floor_ms']:.2f}"
                )
        models[model] = networks
    RESULTS.write_text(
        json.dumps(
            {
                "command": "python benchmarks/stages.py",
                "machine": machine(),
                "instructions": products.instructions(),
                "threads": 1,
                "picture": f"{args.width}x{args.height}, noise",
                "GMAC_a_second": {name: rate / 1e9 for name, rate in peaks.items()},
                "models": models,
            },
            indent=1,
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
