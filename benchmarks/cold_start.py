"""Cold starts: seconds and peak memory of single commands, processes of their own.

    python benchmarks/cold_start.py --image PICTURE [--side 256] [--rounds 7]

A crop of PICTURE is encoded with the zoo's default; then the commands take turns, after one round that fills
numba's cache. "nothing" is Python itself, "numba" its import, "command" the command line without a verb: what
of a start is whose. Run it where nothing but rdquant is installed, as most have it; the result says what of
its extras is. Writes benchmarks/results/cold-start.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from statistics import median

from rdquant.files.images import read_image, write_image
from rdquant.lazy import EXTRAS
from rdquant.zoo import DEFAULT

RESULTS = Path(__file__).parent / "results" / "cold-start.json"


#: starts a command and says seconds, MB and exit status. A process inherits the peak of the one that started
#: it, so that must be a small one
STARTER = """
import os, sys, time
silent = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_WRONLY, 0) for fd in (1, 2)]
start = time.perf_counter()
process = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=silent)
_, status, used = os.wait4(process, 0)
print(time.perf_counter() - start, used.ru_maxrss / 1024, status)
"""


def measure(command: list[str]) -> tuple[float, float]:
    """Seconds, and MB at most resident."""
    started = [sys.executable, "-S", "-c", STARTER, *command]
    done = subprocess.run(started, capture_output=True, text=True, check=True)
    seconds, megabytes, status = done.stdout.split()
    if status != "0":
        raise SystemExit(f"{' '.join(command)} failed")
    return float(seconds), float(megabytes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        small, file, out = (str(Path(folder) / name) for name in ("small.png", "small.rdq", "out.png"))
        write_image(Path(small), read_image(args.image)[: args.side, : args.side])
        rdquant = [sys.executable, "-m", "rdquant"]
        commands = {
            "nothing": [sys.executable, "-c", ""],
            "numba": [sys.executable, "-c", "import numba"],
            "command": [*rdquant, "--version"],
            "encode": [*rdquant, "encode", small, "-o", file, "--overwrite"],
            "decode": [*rdquant, "decode", file, "-o", out, "--overwrite"],
            "inspect": [*rdquant, "inspect", file],
            "inspect model": [*rdquant, "inspect", DEFAULT],
        }
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for i in range(args.rounds + 1):
            for name, command in commands.items():
                taken = measure(command)
                if i:
                    found[name].append(taken)
    rows = {
        name: {"seconds": round(median(s for s, _ in runs), 3), "peak_mb": round(median(m for _, m in runs))}
        for name, runs in found.items()
    }
    extras = [package for package in EXTRAS if find_spec(package) is not None]
    RESULTS.write_text(
        json.dumps(
            {"side": args.side, "rounds": args.rounds, "installed": extras, "commands": rows}, indent=1
        )
        + "\n"
    )
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
