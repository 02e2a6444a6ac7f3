"""One picture to one file and back: analysis, latent quantizer, entropy coder, container.

::

    picture ─ analysis ─ y ─ quantize ─ symbols ─ rANS ─ container ─ file
                         └─ hyper_analysis ─ z symbols ─ rANS ┘

`ImageCoder` works with any codec that has the methods of `Codec`, float or integer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from . import entropy
from .entropy import CdfTables
from .errors import Corrupt, ImageError, ModelMismatch, UnsupportedVersion, UsageError
from .files.container import Header, Limits, Profile, Quantizer, checksum, read, write
from .latents import FixedPointScalar, UniformScalar
from .latents.coding import LatentCoding, ScalarCoding, coded_with, coding_of
from .latents.refine import Refinement
from .pixels import pad_to, to_pixels, to_tensor


class Codec(Protocol):
    """What `ImageCoder` needs of a codec; see `rdquant.integer.IntegerCodec` for shapes and units."""

    @property
    def M(self) -> int: ...
    @property
    def N(self) -> int: ...
    @property
    def has_hyperprior(self) -> bool: ...
    @property
    def downsampling(self) -> int: ...
    @property
    def quantizer(self) -> UniformScalar | FixedPointScalar: ...
    @property
    def y_tables(self) -> CdfTables: ...
    @property
    def z_tables(self) -> CdfTables | None: ...
    def analysis(self, pixels: Tensor) -> Tensor: ...
    def hyper_analysis(self, y: Tensor) -> Tensor: ...
    def entropy_parameters(self, z_symbols: Tensor, spacing: int | None = None) -> tuple[Tensor, Tensor]: ...
    def factorized_means(self, shape: torch.Size) -> Tensor: ...
    def synthesis(self, y_hat: Tensor, exact: bool = True) -> Tensor: ...
    def relaxed_synthesis(self, y_hat: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Coded:
    """The symbols of one picture, and what the entropy coder needs for them."""

    y: Tensor  #: int32 (1, M, H/16, W/16)
    y_indexes: Tensor  #: int32, the table of each symbol (of TCQ, in quantizer 0)
    means: Tensor
    z: Tensor | None  #: int32 (1, N, H/64, W/64)
    z_indexes: Tensor | None


def channel_indexes(shape: torch.Size) -> Tensor:
    """The table of each symbol of a factorized latent: its channel's. int32, ``shape`` (B, C, H, W)."""
    return torch.arange(shape[1], dtype=torch.int32).reshape(1, -1, 1, 1).expand(shape).contiguous()


def _flat(t: Tensor) -> np.ndarray:
    return t.reshape(-1).to(torch.int32).numpy()


def _check_room(name: str, stream: bytes, shape: torch.Size, tables: CdfTables) -> None:
    """Raise `Corrupt` if even the likeliest symbols would not fit: before anything of that size is made."""
    least = math.prod(shape) * tables.least_bits
    if 8 * len(stream) < least:
        raise Corrupt(
            f"{len(stream)} bytes cannot hold the {math.prod(shape)} symbols of {name}: "
            f"they take at least {math.ceil(least / 8)}"
        )


class ImageCoder:
    """Encodes and decodes pictures with one codec.

    ``fingerprint``: 8 bytes that name the model (`rdquant.files.model_file`). ``coding``: how it quantizes
    latents when it encodes; by default each to the nearest. ``refinement``: what it then does to improve
    them. What it decodes says that itself.
    """

    def __init__(
        self,
        codec: Codec,
        fingerprint: bytes,
        profile: Profile,
        coding: LatentCoding | None = None,
        refinement: Refinement | None = None,
    ) -> None:
        self.codec, self.fingerprint, self.profile = codec, fingerprint, profile
        self.coding, self.refinement = coding or ScalarCoding(), refinement

    def describe(self) -> dict[str, Any]:
        """What results say of the model."""
        return {
            "fingerprint": self.fingerprint.hex(),
            "profile": self.profile.name.lower(),
            **({"refinement_rounds": self.refinement.rounds} if self.refinement else {}),
            **getattr(self.codec, "description", {}),
        }

    def symbols(self, rgb: np.ndarray) -> Coded:
        """``rgb: (H, W, 3)`` uint8 of any size from 1x1 -> its symbols. Raises `ImageError`."""
        if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or 0 in rgb.shape:
            raise ImageError(f"pictures are (H, W, 3) uint8, got {rgb.shape} {rgb.dtype}")
        c = self.codec
        pixels = to_tensor(pad_to(rgb, c.downsampling))
        y = c.analysis(pixels)
        z = z_indexes = None
        if c.has_hyperprior:
            z = c.hyper_analysis(y)
            z_indexes = channel_indexes(z.shape)
            y_indexes, means = c.entropy_parameters(z, self.coding.spacing)
        else:
            y_indexes, means = channel_indexes(y.shape), c.factorized_means(y.shape)
        levels = self.coding.levels(c, y, means, y_indexes)
        if self.refinement is not None:
            levels = self.refinement.levels(c, pixels, rgb.shape[:2], y, means, y_indexes, levels)
        return Coded(levels, y_indexes, means, z, z_indexes)

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
        if coded.z is not None and coded.z_indexes is not None and c.z_tables is not None:
            z_stream = entropy.encode(_flat(coded.z), _flat(coded.z_indexes), c.z_tables)
        y_stream = entropy.encode(
            _flat(coded.y), coded_with(self.coding, coded.y, coded.y_indexes), self.coding.tables(c)
        )
        return write(
            self.fingerprint, self.profile, self.coding.quantizer, width, height, (z_stream, y_stream),
            pixels, self.coding.step,
        )  # fmt: skip

    def decode(self, data: bytes, limits: Limits | None = None, exact: bool = True) -> np.ndarray:
        """A file to ``(H, W, 3)`` uint8. Raises an error of the `DecodeError` branch, nothing else.

        Not ``exact``: the symbols are, the pixels are about right and come faster (integer models only,
        else `UsageError`), and a pixel checksum is not looked at.
        """
        if not exact and self.profile is not Profile.INTEGER:
            raise UsageError("only integer models have an approximate synthesis")
        header, (z_stream, y_stream) = read(data, limits or Limits())
        coding = self._coding_of(header)
        c, tables = self.codec, coding.tables(self.codec)
        h, w = (-(-side // c.downsampling) * c.downsampling for side in (header.height, header.width))
        y_shape = torch.Size((1, c.M, h // 16, w // 16))
        _check_room("y", y_stream, y_shape, tables)
        if c.has_hyperprior and c.z_tables is not None:
            z_shape = torch.Size((1, len(c.z_tables.offsets), h // 64, w // 64))
            _check_room("z", z_stream, z_shape, c.z_tables)
            z_indexes = _flat(channel_indexes(z_shape))
            z = torch.from_numpy(entropy.decode(z_stream, z_indexes, c.z_tables)).reshape(z_shape)
            indexes, means = c.entropy_parameters(z, coding.spacing)
        else:
            if z_stream:
                raise Corrupt(f"{len(z_stream)} bytes of a z stream, and the model has no hyperprior")
            indexes, means = channel_indexes(y_shape), c.factorized_means(y_shape)
        symbols = entropy.decode(y_stream, _flat(indexes), tables, coding.machine(y_shape[2] * y_shape[3]))
        y_hat = coding.dequantize(c, torch.from_numpy(symbols).reshape(y_shape), means)
        pixels = self._synthesise(y_hat, header.height, header.width, exact)
        if exact and header.pixels not in (None, checksum(pixels.tobytes())):
            raise Corrupt("the decoded pixels are not those that the encoder saw")
        return pixels

    def _coding_of(self, header: Header) -> LatentCoding:
        if header.fingerprint != self.fingerprint:
            raise ModelMismatch(header.fingerprint.hex(), self.fingerprint.hex())
        if header.profile != self.profile or (header.step is not None and not self.codec.has_hyperprior):
            raise UnsupportedVersion(
                f"the file needs profile {header.profile.name} with quantizer {header.quantizer.name}, "
                f"this coder has {self.profile.name}"
                + ("" if self.codec.has_hyperprior else f" with {Quantizer.UNIFORM.name}")
            )
        return coding_of(header.quantizer, header.step)

    def _synthesise(self, y_hat: Tensor, height: int, width: int, exact: bool = True) -> np.ndarray:
        return to_pixels(self.codec.synthesis(y_hat, exact))[:height, :width]

    def forward(self, rgb: np.ndarray) -> tuple[np.ndarray, float]:
        """The codec's own forward pass, without a file: ``(decoded picture, estimated bits)``."""
        return self.reconstruct(self.symbols(rgb), rgb.shape[1], rgb.shape[0])

    def reconstruct(self, coded: Coded, width: int, height: int) -> tuple[np.ndarray, float]:
        """What a decoder will make of symbols, and the bits that they are estimated to take.

        The estimate is the ideal code length under the coding tables, headers and checksums left out.
        """
        bits = self.coding.tables(self.codec).bits(
            _flat(coded.y), coded_with(self.coding, coded.y, coded.y_indexes)
        )
        if coded.z is not None and coded.z_indexes is not None and self.codec.z_tables is not None:
            bits += self.codec.z_tables.bits(_flat(coded.z), _flat(coded.z_indexes))
        y_hat = self.coding.dequantize(self.codec, coded.y, coded.means)
        return self._synthesise(y_hat, height, width), bits
