"""Count the tables of TCQ's levels on the val split: src/rdquant/latents/tcq_tables.npz.

    python benchmarks/tcq_tables.py --calib TRAIN

They are part of the file format, so they are made once. Start: Gaussians over the cells that nearest
neighbours would have in each quantizer. Then rounds of coding pictures with the zoo's integer codecs and 8
states, counting levels by scale and quantizer, mixed with `PRIOR` counts of the start.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from scipy.special import ndtr, ndtri

from rdquant import zoo
from rdquant.entropy import CdfTables, pmf_tables, scale_table
from rdquant.files.container import Quantizer
from rdquant.files.integer_models import load_integer
from rdquant.files.split import split_files
from rdquant.latents import coding, trellis
from rdquant.latents.parts import quantized, requantized
from rdquant.passes import load_calibration
from rdquant.pixels import pad_to, to_batch

PICTURES, ROUNDS, PRIOR, STEP = 24, 3, 30, 0.65


def start() -> tuple[list[np.ndarray], list[int], list[float]]:
    """Probabilities, first levels and masses outside, of both quantizers at each scale."""
    pmfs, offsets, tails = [], [], []
    for quantizer in (0, 1):
        for scale in scale_table():
            reach = int(np.ceil(-ndtri(5e-10) * scale)) + 1
            magnitude = np.arange(1, reach + 1, dtype=np.float64)
            # upper ends of the cells of 0, 1, 2, ..., in units of two steps
            ends = np.concatenate([[0.5], magnitude + 0.5]) if quantizer == 0 else np.arange(reach + 1.0)
            ends[0] = 0.5 if quantizer == 0 else 0.25
            above = ndtr(-ends / scale)  # mass beyond each end, one side
            side = above[:-1] - above[1:]
            pmfs.append(np.concatenate([side[::-1], [1 - 2 * above[0]], side]))
            offsets.append(-reach)
            tails.append(2 * float(above[-1]))
    return pmfs, offsets, tails


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calib", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(trellis.__file__).with_name("tcq_tables.npz"))
    args = parser.parse_args()
    pictures = load_calibration(split_files(args.calib, "val"), PICTURES, 256)
    pmfs, offsets, tails = start()
    tables = pmf_tables(pmfs, offsets, tails)
    models = []
    for name, entry in zoo.index().items():
        if entry["kind"] == "integer":
            codec = load_integer(zoo.find(name))  # type: ignore[arg-type]
            latents = [quantized(codec, to_batch(pad_to(p, codec.downsampling))) for p in pictures]
            models.append((codec, entry["lambda"], latents))
    for k in range(ROUNDS):
        current: CdfTables = tables
        for module in (trellis, coding):
            module.tcq_tables = lambda: current  # type: ignore[attr-defined]  # noqa: B023
        counts = [np.zeros(len(p)) for p in pmfs]
        bits = symbols = 0.0
        for codec, lambda_, latents in models:
            gains = np.array(codec.description["latent_gains"])
            units = round(STEP * codec.quantizer.unit)
            tcq = coding.TrellisCoding(Quantizer.TCQ8, units, gains, lambda_)
            for plain in latents:
                levels, used = requantized(codec, plain, plain.y, tcq).stream(tcq)
                bits, symbols = bits + current.bits(levels, used), symbols + len(levels)
                at = levels - np.array(offsets)[used]
                for t in np.unique(used):
                    inside = at[(used == t) & (at >= 0) & (at < len(counts[t]))]
                    np.add.at(counts[t], inside, 1)
        print(f"round {k}: {bits / symbols:.5f} bits a level")
        mixed = [(c + PRIOR * p) / (c.sum() + PRIOR) for c, p in zip(counts, pmfs, strict=True)]
        tables = pmf_tables(mixed, offsets, tails)
    np.savez_compressed(args.out, changes=tables.changes(), starts=tables.starts, offsets=tables.offsets)


if __name__ == "__main__":
    main()
