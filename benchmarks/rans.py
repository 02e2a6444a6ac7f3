"""Speed of the entropy coder on a synthetic latent, one thread; CompressAI's coder beside it if found.

    python benchmarks/rans.py            (RDQUANT_COMPRESSAI_DIR: folder that holds compressai's ans.*.so)

Work: 491,520 symbols (M = 320, 512x768), 64 Gaussian tables, table by index. Alternating, medians.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np

from rdquant.entropy import decode, encode, gaussian_tables, scale_table
from rdquant.measure import machine

SYMBOLS = 491_520
#: centre and spread of the table indexes: about 1.6 bit a symbol
INDEX_MEAN, INDEX_SPREAD = 14.5, 9.0


def compressai_coder() -> Any | None:
    folder = os.environ.get("RDQUANT_COMPRESSAI_DIR")
    if folder is None and (package := importlib.util.find_spec("compressai")) is not None:
        folder = next(iter(package.submodule_search_locations or ()), None)
    library = next(Path(folder).glob("ans.*.so"), None) if folder else None
    if library is None:
        return None
    spec = importlib.util.spec_from_file_location("ans", library)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/rans.json"))
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    scales = scale_table()
    tables = gaussian_tables(scales)
    indexes = np.clip(np.round(rng.normal(INDEX_MEAN, INDEX_SPREAD, SYMBOLS)), 0, 63).astype(np.int32)
    symbols = np.round(rng.normal(size=SYMBOLS) * scales[indexes]).astype(np.int32)
    data = encode(symbols, indexes, tables)
    assert np.array_equal(decode(data, indexes, tables), symbols)
    ideal = tables.bits(symbols, indexes) / 8
    work: dict[str, Callable[[], Any]] = {
        "encode": lambda: encode(symbols, indexes, tables),
        "decode": lambda: decode(data, indexes, tables),
    }
    if (ans := compressai_coder()) is not None:
        dense = tables.to_dense()
        theirs = ans.RansEncoder().encode_with_indexes(symbols.tolist(), indexes.tolist(), *dense)
        assert theirs == data, "bytes differ from CompressAI's"
        work["compressai encode"] = lambda: ans.RansEncoder().encode_with_indexes(
            symbols.tolist(), indexes.tolist(), *dense
        )
        work["compressai decode"] = lambda: ans.RansDecoder().decode_with_indexes(
            data, indexes.tolist(), *dense
        )
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(args.runs):
        for name, run in work.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    result = {
        "command": "python benchmarks/rans.py",
        "machine": {**machine(), "numba": numba.__version__},
        "symbols": SYMBOLS,
        "bits_per_symbol": round(8 * len(data) / SYMBOLS, 4),
        "bytes": len(data),
        "ideal_bytes": round(ideal),
        "million_symbols_per_second": {
            name: round(SYMBOLS / statistics.median(t) / 1e6, 1) for name, t in times.items()
        },
        "bytes_equal_compressai": ans is not None,
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
