"""rdquant: make a trained learned image codec shippable.

::

    import rdquant

    data = rdquant.encode(picture)  # an array, a tensor, a Pillow image or a path -> bytes of a file
    rgb = rdquant.decode(data)  # the same pixels on every machine
    Image.open("x.rdq"), image.save("x.rdq", quality=60)  # Pillow knows the format after ``import rdquant``

    integer = rdquant.quantize("checkpoint.pth.tar", "photographs/")  # or a codec of your own
    rdquant.save_integer(integer, "mine.rdqm")
    coder = rdquant.open("mine.rdqm")  # or a name of the zoo, or what `quantize` gave
    data = coder.encode(rgb)
    curve = rdquant.evaluate("mine.rdqm", "kodak/")  # real files: rate, quality, time

Names below are loaded when they are first used, so that ``import rdquant`` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import pillow as _pillow
from .lazy import extras

if TYPE_CHECKING:
    from .codec import Codec
    from .codecs.protocol import TrainedCodec
    from .coder import ImageCoder
    from .files.integer_models import load_integer, save_integer
    from .front import decode, encode, evaluate, quantize
    from .front import open_model as open
    from .graph.capture import capture
    from .passes import QuantizeConfig

__version__ = "1.0.0"

__all__ = [
    "Codec",
    "ImageCoder",
    "QuantizeConfig",
    "TrainedCodec",
    "capture",
    "decode",
    "encode",
    "evaluate",
    "load_integer",
    "open",
    "quantize",
    "save_integer",
]

#: where each is, and its name there where it is another
_MODULES = {
    "Codec": "codec",
    "ImageCoder": "coder",
    "QuantizeConfig": "passes",
    "TrainedCodec": "codecs.protocol",
    "capture": "graph.capture",
    "decode": "front",
    "encode": "front",
    "evaluate": "front",
    "load_integer": "files.integer_models",
    "open": "front:open_model",
    "quantize": "front",
    "save_integer": "files.integer_models",
}


_pillow.register()


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, other = _MODULES[name].partition(":")
    with extras():
        return getattr(importlib.import_module(f".{module}", __name__), other or name)


def __dir__() -> list[str]:
    return [*globals(), *_MODULES]
