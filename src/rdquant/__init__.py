"""rdquant: make a trained learned image codec shippable.

::

    import rdquant

    data = rdquant.encode(picture, quality=60)  # an array, a Pillow image or a path -> bytes of a file
    rgb = rdquant.decode(data)  # the same pixels on every machine
    Image.open("x.rdq"), image.save("x.rdq", quality=60)  # Pillow knows the format after ``import rdquant``

    integer = rdquant.quantize(codec, pictures)  # a codec of your own (docs/own-codec.md), uint8 pictures
    rdquant.save_integer(integer, Path("mine.rdqm"))
    coder = rdquant.open_coder("mine.rdqm")  # or a name of the zoo
    data = coder.encode(rgb)

Names below are loaded when they are first used, so that ``import rdquant`` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import pillow as _pillow

if TYPE_CHECKING:
    from .codec import Codec
    from .codecs.protocol import TrainedCodec
    from .coder import ImageCoder
    from .files.integer_models import load_integer, save_integer
    from .front import decode, encode
    from .graph.capture import capture
    from .load import coder_of, open_coder
    from .passes import QuantizeConfig, quantize

__version__ = "0.2.0"

__all__ = [
    "Codec",
    "ImageCoder",
    "QuantizeConfig",
    "TrainedCodec",
    "capture",
    "coder_of",
    "decode",
    "encode",
    "load_integer",
    "open_coder",
    "quantize",
    "save_integer",
]

#: where each is
_MODULES = {
    "Codec": "codec",
    "ImageCoder": "coder",
    "QuantizeConfig": "passes",
    "TrainedCodec": "codecs.protocol",
    "capture": "graph.capture",
    "coder_of": "load",
    "decode": "front",
    "encode": "front",
    "load_integer": "files.integer_models",
    "open_coder": "load",
    "quantize": "passes",
    "save_integer": "files.integer_models",
}


_pillow.register()


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*globals(), *_MODULES]
