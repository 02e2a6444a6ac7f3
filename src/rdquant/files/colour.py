"""Colour profiles: is one sRGB, and what are its colours in sRGB? With LittleCMS, which Pillow has inside.

Conversions are relative colorimetric with black point compensation, as those of most viewers.
"""

from __future__ import annotations

import functools
import io
from typing import Any

import numpy as np
from PIL import Image

from ..errors import ImageError

#: a profile that moves no colour of a grid by more is sRGB: rounding of its curves moves them so far
SRGB_TOLERANCE = 1
#: what a profile says of its samples -> modes of Pillow that it can describe
SPACES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
#: sides of the grid of colours
_GRID = 7


def _opened(profile: bytes, name: str) -> Any:
    from PIL import ImageCms

    try:
        return ImageCms.ImageCmsProfile(io.BytesIO(profile))
    except (ImageCms.PyCMSError, OSError) as error:
        raise ImageError(
            f"the colour profile of {name} cannot be read: {error}; --colour ignore does without"
        ) from None


def mode_of(profile: bytes, name: str = "picture") -> str | None:
    """The mode of the pictures that it describes, "RGB", "L" or "CMYK", or None. Raises `ImageError`."""
    return SPACES.get(_opened(profile, name).profile.xcolor_space.strip())


def to_srgb(picture: Image.Image, profile: bytes, name: str = "picture") -> Image.Image:
    """A picture of mode RGB, from one of `mode_of` the profile. Raises `ImageError`."""
    from PIL import ImageCms

    try:
        transform = ImageCms.buildTransform(
            _opened(profile, name),
            ImageCms.createProfile("sRGB"),
            picture.mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        converted = ImageCms.applyTransform(picture, transform)
    except (ImageCms.PyCMSError, ValueError) as error:
        raise ImageError(
            f"the colour profile of {name} cannot convert {picture.mode}: {error}; "
            "--colour ignore does without"
        ) from None
    assert converted is not None
    return converted


@functools.lru_cache(maxsize=16)
def is_srgb(profile: bytes, name: str = "picture") -> bool:
    """Whether an RGB profile says what no profile says. Raises `ImageError`."""
    steps = np.linspace(0, 255, _GRID).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(1, -1, 3)
    moved = np.asarray(to_srgb(Image.fromarray(grid), profile, name)).astype(int)
    return int(np.abs(moved - grid).max()) <= SRGB_TOLERANCE
