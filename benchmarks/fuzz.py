"""Coverage-guided fuzzing of parser, entropy coder, decoder and model loader with atheris.

    python benchmarks/fuzz.py --seconds 1800

Needs the `dev` extra. Starts from the corpus in tests/corpus.zip and the golden files, and keeps what reached
new code in the corpus. Writes benchmarks/results/fuzz.json; exits non-zero on a finding, which libFuzzer
leaves as a file named crash-*.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: longest input, bytes
LONGEST = 4096


def child(corpus: str, seconds: int) -> None:
    """Fuzz in this process, until libFuzzer ends it."""
    import atheris

    sys.path.insert(0, str(ROOT / "tests"))
    # compiled code cannot be traced
    sources = (ROOT / "src").rglob("*.py")
    kernels = [
        ".".join(source.relative_to(ROOT / "src").with_suffix("").parts)
        for source in sources
        if "@njit(" in source.read_text()
    ]
    with atheris.instrument_imports(include=["rdquant", "fuzz_target"], exclude=kernels):
        import fuzz_target

        fuzz_target.coders()
    for data in fuzz_target.seeds().values():
        fuzz_target.run(data)  # kernels are compiled before the clock runs
    limits = [f"-max_total_time={seconds}", f"-max_len={LONGEST}", "-rss_limit_mb=2048", "-timeout=60"]
    atheris.Setup([sys.argv[0], corpus, "-print_final_stats=1", *limits], fuzz_target.run)
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=1800)
    parser.add_argument("--corpus", type=Path, default=ROOT / "tests" / "corpus.zip")
    results = ROOT / "benchmarks" / "results"
    parser.add_argument("--out", default=str(results / "fuzz.json"), help="'' for none")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(str(args.corpus), args.seconds)
        return
    folder = Path(tempfile.mkdtemp(prefix="corpus-"))
    if args.corpus.exists():
        shutil.unpack_archive(args.corpus, folder)
    sys.path.insert(0, str(ROOT / "tests"))
    import fuzz_target

    for name, data in fuzz_target.seeds().items():
        (folder / name).write_bytes(data)
    command = [sys.executable, __file__, "--child", "--seconds", str(args.seconds)]
    command += ["--corpus", str(folder)]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    log = done.stderr
    if done.returncode:
        sys.stderr.write(log[-4000:])
        raise SystemExit(f"a finding, or no atheris (exit code {done.returncode})")
    lines = re.findall(r"#(\d+)\s+(\w+)\s+cov: (\d+) ft: (\d+) corp: (\d+)", log)
    executions = re.search(r"number_of_executed_units:\s*(\d+)", log)
    first, last = lines[0], lines[-1]
    result = {
        "command": f"python benchmarks/fuzz.py --seconds {args.seconds}",
        "seconds": time.perf_counter() - start,
        "executions": int(executions.group(1)) if executions else int(last[0]),
        "coverage_points_at_start": int(first[2]), "coverage_points": int(last[2]), "features": int(last[3]),
        "corpus": int(last[4]), "findings": 0,
    }  # fmt: skip
    shutil.make_archive(str(args.corpus.with_suffix("")), "zip", folder)
    shutil.rmtree(folder)
    print(json.dumps(result, indent=1))
    if args.out:
        from rdquant.measure import machine

        Path(args.out).write_text(json.dumps({**result, "machine": machine()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
