from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdquant.errors import BadModel, UsageError
from rdquant.files.bits import pack, packed_size, unpack


@given(st.integers(1, 16), st.lists(st.integers(0, 2**16 - 1), max_size=70))
def test_round_trip_at_every_width(bits: int, values: list[int]) -> None:
    v = np.array(values, np.int64) % 2**bits
    data = pack(v, bits)
    assert len(data) == packed_size(len(v), bits)
    assert np.array_equal(unpack(data, bits, len(v)), v)
    # the slow, obvious form: one long integer
    whole = sum(int(x) << (i * bits) for i, x in enumerate(v))
    assert data.tobytes() == whole.to_bytes(len(data), "little")


def test_what_is_refused() -> None:
    with pytest.raises(UsageError, match="8 do not fit 3"):
        pack(np.array([8]), 3)
    with pytest.raises(UsageError, match="17"):
        pack(np.array([8]), 17)
    with pytest.raises(BadModel, match="take 2 bytes, got 1"):
        unpack(np.zeros(1, np.uint8), 3, 5)
    with pytest.raises(BadModel, match="not zero"):
        unpack(np.array([0x80], np.uint8), 3, 2)
