"""The zoo's candidates, by name."""

from .base import AllRatesCodec, Coded
from .registry import CANDIDATES, build, candidate

__all__ = ["CANDIDATES", "AllRatesCodec", "Coded", "build", "candidate"]
