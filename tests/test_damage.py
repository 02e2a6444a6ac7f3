"""A decoder that no file can hurt: small files of every model, damaged in every way.

The whole of it, every byte overwritten with every value, is benchmarks/damage.py.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from damaged import bit_flips, extensions, lies, overwrites, truncations
from golden.make import HERE, MODELS
from rdquant.coder import ImageCoder
from rdquant.errors import DecodeError, NotOurFormat
from rdquant.files.container import read, with_sections
from rdquant.load import open_coder
from tiny import KINDS, make_coder, with_coding

TINY = "tiny"
SECTIONS = ((1, b"not a profile, which no decoder looks at"), (2, b"nor EXIF"), (77, b"of a later release"))
FILES = [
    *((name, "70x45") for name in MODELS),
    ("mean-w8", "70x45-tcq8"),
    *((TINY, kind) for kind in KINDS),
    (TINY, "groups-tcq8"),
    (TINY, "groups-sections"),
]


def tiny(kind: str, photo: np.ndarray) -> tuple[ImageCoder, bytes]:
    """A coder of a prior, and a small file of it, pixel checksum included."""
    decoder = make_coder(kind.removesuffix("-tcq8").removesuffix("-sections"))
    encoder = with_coding(decoder, "tcq8" if kind.endswith("-tcq8") else "uniform")
    data = encoder.encode(photo[100:112, 100:115], pixel_checksum=True)
    return decoder, with_sections(data, SECTIONS) if kind.endswith("-sections") else data


@pytest.fixture(scope="module", params=FILES, ids="-".join)
def coder(request: pytest.FixtureRequest, photo: np.ndarray) -> tuple[ImageCoder, bytes]:
    name, picture = request.param
    if name == TINY:
        return tiny(picture, photo)
    decoder, data = open_coder(str(HERE / f"{name}.rdqm")), (HERE / f"{name}-{picture}.rdq").read_bytes()
    decoder.decode(data)  # kernels are compiled and tested at the first
    return decoder, data


def test_every_damage_is_a_typed_error(coder: tuple[ImageCoder, bytes], rng: np.random.Generator) -> None:
    decoder, data = coder
    values = range(int(rng.integers(16)), 256, 16)
    for damaged in (*bit_flips(data), *truncations(data), *extensions(data), *overwrites(data, values)):
        with pytest.raises(DecodeError):
            decoder.decode(damaged)


def test_lies_with_right_checksums_are_typed_errors_at_once(coder: tuple[ImageCoder, bytes]) -> None:
    decoder, data = coder
    for label, lie in lies(data):
        seconds = []
        while len(seconds) < 3 and min(seconds, default=2.0) >= 1:  # a busy machine is no failure
            start = time.process_time()
            with pytest.raises(DecodeError):
                decoder.decode(lie)
            seconds.append(time.process_time() - start)
        assert min(seconds) < 1, label


def test_only_a_pixel_checksum_holds_a_size_within_the_padding(coder: tuple[ImageCoder, bytes]) -> None:
    """And a quality: what nothing else in a file depends on."""
    decoder, _ = coder
    data = with_sections(decoder.encode(decoder.decode(coder[1])), read(coder[1])[0].sections)
    for label, lie in lies(data):
        try:
            decoder.decode(lie)
        except DecodeError:
            continue
        assert label in ("width", "height", "quality")


@pytest.mark.parametrize("name", ["golden.json", "mean-w8.rdqm", "make.py"])
def test_other_files_are_not_ours(coder: tuple[ImageCoder, bytes], name: str) -> None:
    with pytest.raises(NotOurFormat):
        coder[0].decode((HERE / name).read_bytes())


def test_lies_take_little_memory() -> None:
    """In a process of its own, whose memory is not that of other tests."""
    code = """
import re, sys
def peak():  # of this process; getrusage counts its parent's as well
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
sys.path.insert(0, sys.argv[1])
from damaged import lies
from golden.make import HERE
from rdquant.errors import DecodeError
from rdquant.load import open_coder
from tiny import KINDS, make_coder, with_coding
coder = open_coder(str(HERE / "mean-w8.rdqm"))
data = (HERE / "mean-w8-70x45.rdq").read_bytes()
coder.decode(data)
before = peak()
for _, lie in lies(data):
    try:
        coder.decode(lie)
    except DecodeError:
        pass
after = peak()
print(after // 1024, (after - before) // 1024)
"""
    out = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent)], capture_output=True, text=True, check=True
    )
    peak, growth = map(int, out.stdout.split())
    assert peak < 1024 and growth < 100
