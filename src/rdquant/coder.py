"""One picture to one file and back: analysis, latent quantizer, entropy coder, container.

::

    picture ─ analysis ─ y ─ part after part: quantize ─ symbols ─ rANS ─ container ─ file
                         └─ hyper_analysis ─ z symbols ─ rANS ┘

`ImageCoder` works with any `rdquant.codec.Codec`, float or integer. How y is coded in parts, given what is
decoded, is the codec's prior (`rdquant.priors`); the loop over them is `rdquant.latents.parts`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from . import entropy
from .codec import Codec
from .entropy import CdfTables
from .errors import Corrupt, ImageError, ModelMismatch, UnsupportedVersion, UsageError
from .export.runtimes import Synthesis, resolved
from .files.container import (
    Header,
    Limits,
    Profile,
    Quantizer,
    Sections,
    bytes_of,
    checksum,
    read,
    with_sections,
    write,
)
from .latents.coding import LatentCoding, ScalarCoding, coding_of
from .latents.parts import Coded, quantized, walk
from .latents.refine import Refinement
from .pixels import pad_to, to_batch, to_pixels
from .priors import Part
from .quality import ONE_RATE, for_size, hundredths


def channel_indexes(shape: tuple[int, ...]) -> np.ndarray:
    """The table of each symbol of a factorized latent: its channel's. int32 ``(B C H W,)``."""
    b, c, h, w = shape
    return np.tile(np.repeat(np.arange(c, dtype=np.int32), h * w), b)


def _check_room(name: str, stream: bytes, shape: tuple[int, ...], tables: CdfTables) -> None:
    """Raise `Corrupt` if even the likeliest symbols would not fit: before anything of that size is made."""
    least = math.prod(shape) * tables.least_bits
    if 8 * len(stream) < least:
        raise Corrupt(
            f"{len(stream)} bytes cannot hold the {math.prod(shape)} symbols of {name}: "
            f"they take at least {math.ceil(least / 8)}"
        )


def coded(
    coder: ImageCoder,
    rgb: np.ndarray,
    sections: Sections = (),
    target_bpp: float | None = None,
    target_size: float | None = None,
    pixel_checksum: bool = False,
) -> bytes:
    """The file of a picture with what it carries; with a target, the one of the highest quality that takes at
    most so many bits a pixel, or bytes. Raises as `ImageCoder.encode_to_size`.
    """
    most = target_size if target_bpp is None else target_bpp * rgb[..., 0].size / 8
    if most is None:
        data = coder.encode(rgb, pixel_checksum)
    else:
        data = coder.encode_to_size(rgb, most - bytes_of(sections), pixel_checksum)
    return with_sections(data, sections) if sections else data


class ImageCoder:
    """Encodes and decodes pictures with one codec.

    ``fingerprint``: 8 bytes that name the model (`rdquant.files.model_file`). ``coding``: how it quantizes
    latents when it encodes; by default each to the nearest. ``refinement``: what it then does to improve
    them. What it decodes says that itself. ``quality``: in hundredths, of models for many rates
    (`rdquant.quality`), for which ``others`` makes a coder at another one.
    """

    def __init__(
        self,
        codec: Codec,
        fingerprint: bytes,
        profile: Profile,
        coding: LatentCoding | None = None,
        refinement: Refinement | None = None,
        quality: int | None = None,
        others: Callable[[int], ImageCoder] | None = None,
    ) -> None:
        self.quality, self._others = quality, others
        self.codec, self.fingerprint, self.profile = codec, fingerprint, profile
        self.coding, self.refinement = coding or ScalarCoding(), refinement

    def at(self, quality: float) -> ImageCoder:
        """The coder at a quality of 1..100. Raises `UsageError` for another one, or a model of one rate."""
        return self._at(hundredths(quality))

    def _at(self, quality: int) -> ImageCoder:
        if self._others is None:
            raise UsageError(ONE_RATE)
        return self if quality == self.quality else self._others(quality)

    def encode_to_size(self, rgb: np.ndarray, most: float, pixel_checksum: bool = False) -> bytes:
        """The file of the highest quality that takes at most ``most`` bytes.

        Raises `UsageError` if none does, or the model has one rate.
        """
        return for_size(lambda quality: self._at(quality).encode(rgb, pixel_checksum), most)

    def describe(self) -> dict[str, Any]:
        """What results say of the model."""
        return {
            "fingerprint": self.fingerprint.hex(),
            "profile": self.profile.name.lower(),
            **({} if self.quality is None else {"quality": self.quality / 100}),
            **({"refinement_rounds": self.refinement.rounds} if self.refinement else {}),
            **self.codec.description,
        }

    def symbols(self, rgb: np.ndarray) -> Coded:
        """``rgb: (H, W, 3)`` uint8 of any size from 1x1 -> its symbols.

        Raises `ImageError`, and `UsageError` for a trellis that the model's prior cannot have.
        """
        if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or 0 in rgb.shape:
            raise ImageError(
                f"a coder takes one array (H, W, 3) of uint8, got {tuple(rgb.shape)} {rgb.dtype}; "
                "rdquant.encode takes tensors, floats and batches, too"
            )
        if self.coding.step is not None and self.codec.prior.no_trellis:
            kind = self.coding.quantizer.name
            raise UsageError(f"{kind} cannot code the latents of this model: {self.codec.prior.no_trellis}")
        pixels = to_batch(pad_to(rgb, self.codec.downsampling))
        found = quantized(self.codec, pixels, self.coding)
        if self.refinement is not None:
            found = self.refinement.best(self.codec, pixels, rgb.shape[:2], found)
        return found

    def encode(self, rgb: np.ndarray, pixel_checksum: bool = False) -> bytes:
        """A whole ``.rdq`` file. ``pixel_checksum``: decode too, and let the file say what must come out."""
        coded = self.symbols(rgb)
        height, width = rgb.shape[:2]
        if not pixel_checksum:
            return self.pack(coded, width, height)
        pixels, _ = self.reconstruct(coded, width, height)
        return self.pack(coded, width, height, checksum(pixels.tobytes()))

    def pack(self, coded: Coded, width: int, height: int, pixels: int | None = None) -> bytes:
        """Symbols to file. ``pixels``: checksum of the decoded picture."""
        c, z_stream = self.codec, b""
        if coded.z_symbols is not None and c.z_tables is not None:
            z_indexes = channel_indexes(coded.z_symbols.shape)
            z_stream = entropy.encode(coded.z_symbols.reshape(-1), z_indexes, c.z_tables)
        y_stream = entropy.encode(*coded.stream(self.coding), self.coding.tables(c))
        return write(
            self.fingerprint, self.profile, self.coding.quantizer, width, height, (z_stream, y_stream),
            pixels, self.coding.step, self.quality,
        )  # fmt: skip

    def decode(self, data: bytes, limits: Limits | None = None, engine: Synthesis = "exact") -> np.ndarray:
        """A file to ``(H, W, 3)`` uint8. Raises an error of the `DecodeError` branch, nothing else.

        ``engine``: what makes the pixels; symbols are exact whichever it is. With another than "exact" pixels
        are about right, and a pixel checksum is not looked at; for integer models only, and where the engine
        is installed, else `UsageError`.
        """
        if engine != "exact" and self.profile is not Profile.INTEGER:
            raise UsageError(f"only integer models run in other engines than ours, not {engine!r}")
        engine = resolved(self.codec.networks["synthesis"], engine)
        header, (z_stream, y_stream) = read(data, limits or Limits())
        coding = self._coding_of(header)
        if header.quality is not None and header.quality != self.quality:
            return self._at(header.quality).decode(data, limits, engine)
        c, tables = self.codec, coding.tables(self.codec)
        h, w = (-(-side // c.downsampling) * c.downsampling for side in (header.height, header.width))
        _check_room("y", y_stream, (1, c.M, h // c.stride, w // c.stride), tables)
        z_hat = None
        if c.z_tables is not None:
            shape = 1, len(c.z_tables), h // c.z_stride, w // c.z_stride
            _check_room("z", z_stream, shape, c.z_tables)
            z_hat = c.z_hat(entropy.decode(z_stream, channel_indexes(shape), c.z_tables).reshape(shape))
        elif z_stream:
            raise Corrupt(f"{len(z_stream)} bytes of a z stream, and the model has no hyperprior")
        y_hat, decoder = c.blank(1, h // c.stride, w // c.stride), entropy.Decoder(y_stream, tables)

        def read_levels(part: Part, indexes: np.ndarray, means: np.ndarray) -> np.ndarray:
            found = decoder.next(indexes.reshape(-1), coding.machine(max(1, indexes.shape[3])))
            return found.reshape(indexes.shape)

        deque(walk(c, c.begin(z_hat), y_hat, coding, read_levels), maxlen=0)
        decoder.finish()
        pixels = self._synthesise(y_hat, header.height, header.width, engine)
        wanted = header.pixels if engine == "exact" else None
        if wanted is not None and wanted != checksum(pixels.tobytes()):
            raise Corrupt("the decoded pixels are not those that the encoder saw")
        return pixels

    def _coding_of(self, header: Header) -> LatentCoding:
        if header.fingerprint != self.fingerprint:
            raise ModelMismatch(header.fingerprint.hex(), self.fingerprint.hex())
        no_trellis = self.codec.prior.no_trellis
        if header.profile != self.profile or (header.step is not None and no_trellis):
            raise UnsupportedVersion(
                f"the file needs profile {header.profile.name} with quantizer {header.quantizer.name}, "
                f"this coder has {self.profile.name}"
                + (f" with {Quantizer.UNIFORM.name} alone: {no_trellis}" if no_trellis else "")
            )
        if (header.quality is None) != (self.quality is None):
            raise Corrupt(f"the file has the quality {header.quality}, its model {self.quality}")
        return coding_of(header.quantizer, header.step)

    def _synthesise(
        self, y_hat: np.ndarray, height: int, width: int, engine: Synthesis = "exact"
    ) -> np.ndarray:
        return to_pixels(self.codec.synthesis(y_hat, engine))[:height, :width]

    def forward(self, rgb: np.ndarray) -> tuple[np.ndarray, float]:
        """The codec's own forward pass, without a file: ``(decoded picture, estimated bits)``."""
        return self.reconstruct(self.symbols(rgb), rgb.shape[1], rgb.shape[0])

    def reconstruct(self, coded: Coded, width: int, height: int) -> tuple[np.ndarray, float]:
        """What a decoder will make of symbols, and the bits that they are estimated to take.

        The estimate is the ideal code length under the coding tables, headers and checksums left out.
        """
        c = self.codec
        bits = self.coding.tables(c).bits(*coded.stream(self.coding))
        if coded.z_symbols is not None and c.z_tables is not None:
            bits += c.z_tables.bits(coded.z_symbols.reshape(-1), channel_indexes(coded.z_symbols.shape))
        return self._synthesise(coded.y_hat, height, width), bits
