"""A bit-width for every layer, for a size you name (FMPQ and what it is compared with)."""

from .plan import Plan
from .refine import Neighbourhood, refine
from .search import fmpq, knapsack
from .sizes import LayerSizes
from .table import SensitivityTable, measure_table

__all__ = [
    "LayerSizes", "Neighbourhood", "Plan", "SensitivityTable", "fmpq", "knapsack", "measure_table", "refine",
]  # fmt: skip
