"""A report: what was measured, as one page that needs no network, and its figures as SVG.

::

    inputs.py   JSON files -> curves, plans, sensitivity tables, traces of J
    figures.py  those -> figures of Plotly, as data
    tables.py   those -> tables: BD-rates with intervals, means, pictures
    matched.py  pictures and a coder -> the same pictures by classical codecs in as many bytes
    page.py     all of it -> HTML, with assets/page.css and page.js
"""

from .inputs import Inputs, read_inputs
from .matched import Matched, matched
from .page import Page
from .write import write_report

__all__ = ["Inputs", "Matched", "Page", "matched", "read_inputs", "write_report"]
