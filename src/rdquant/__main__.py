"""``python -m rdquant``."""

from .cli import main

main()
