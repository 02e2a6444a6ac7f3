"""Entropy coding: integer CDF tables and rANS64.

What it is: `CdfTables` hold probabilities as 16-bit integers; `encode` and `decode` code integers with
them, one table index per symbol. The byte format is CompressAI's, so its coder is an oracle for ours.

What the caller must guarantee: the decoder gets the same tables and the same indexes as the encoder,
to the last one. That is why both are integers stored in the model file or computed in exact integer
arithmetic, and never rebuilt from a float function at load time.

What is then guaranteed: every 32-bit symbol round-trips (values outside a table are escaped), on
every machine; and `decode` never reads outside its input, whatever the input is.

Which one to use: `encode`/`decode` always, `Decoder` where a symbol's table depends on symbols before it.
`rans_reference` is the specification, for tests and for readers; it is some 10,000 times slower.
"""

from .machine import ParityMachine
from .rans import Decoder, decode, encode
from .tables import (
    CdfTables,
    gaussian_tables,
    pmf_tables,
    quantize_pmf,
    scale_boundaries,
    scale_table,
    scale_thresholds,
)

__all__ = [
    "CdfTables",
    "Decoder",
    "ParityMachine",
    "decode",
    "encode",
    "gaussian_tables",
    "pmf_tables",
    "quantize_pmf",
    "scale_boundaries",
    "scale_table",
    "scale_thresholds",
]
