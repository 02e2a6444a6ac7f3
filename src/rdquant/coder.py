"""One picture to one file and back: analysis, latent quantizer, entropy coder, container.

::

    picture ─ analysis ─ y ─ quantize ─ symbols ─ rANS ─ container ─ file
                         └─ hyper_analysis ─ z symbols ─ rANS ┘

`ImageCoder` works with any codec that has the methods of `Codec`, float or integer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from . import entropy
from .entropy import CdfTables
from .errors import ImageError, ModelMismatch, UnsupportedVersion
from .files.container import Header, Limits, Profile, Quantizer, read, write
from .pixels import pad_to, to_pixels, to_tensor


class LatentQuantizer(Protocol):
    @property
    def step(self) -> float: ...
    def quantize(self, y: Tensor, means: Tensor) -> Tensor: ...
    def dequantize(self, symbols: Tensor, means: Tensor) -> Tensor: ...


class LatentSearch(Protocol):
    """An encoder's better choice of symbols; see `rdquant.latents.rdoq.Rdoq`."""

    def levels(self, y: Tensor, means: Tensor, indexes: Tensor, tables: CdfTables, step: float) -> Tensor: ...


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
    def quantizer(self) -> LatentQuantizer: ...
    @property
    def y_tables(self) -> CdfTables: ...
    @property
    def z_tables(self) -> CdfTables | None: ...
    def analysis(self, pixels: Tensor) -> Tensor: ...
    def hyper_analysis(self, y: Tensor) -> Tensor: ...
    def entropy_parameters(self, z_symbols: Tensor) -> tuple[Tensor, Tensor]: ...
    def factorized_means(self, shape: torch.Size) -> Tensor: ...
    def synthesis(self, y_hat: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Coded:
    """The symbols of one picture, and what the entropy coder needs for them."""

    y: Tensor  #: int32 (1, M, H/16, W/16)
    y_indexes: Tensor  #: int32, the table of each symbol
    means: Tensor
    z: Tensor | None  #: int32 (1, N, H/64, W/64)
    z_indexes: Tensor | None


def channel_indexes(shape: torch.Size) -> Tensor:
    """The table of each symbol of a factorized latent: its channel's. int32, ``shape`` (B, C, H, W)."""
    return torch.arange(shape[1], dtype=torch.int32).reshape(1, -1, 1, 1).expand(shape).contiguous()


def _flat(t: Tensor) -> np.ndarray:
    return t.reshape(-1).to(torch.int32).numpy()


class ImageCoder:
    """Encodes and decodes pictures with one codec.

    ``fingerprint``: 8 bytes that name the model (`rdquant.files.models`). ``search``: how symbols of y
    are chosen; by default each is the nearest.
    """

    def __init__(
        self, codec: Codec, fingerprint: bytes, profile: Profile, search: LatentSearch | None = None
    ) -> None:
        self.codec, self.fingerprint, self.profile, self.search = codec, fingerprint, profile, search

    def describe(self) -> dict[str, Any]:
        """What results say of the model."""
        return {
            "fingerprint": self.fingerprint.hex(),
            "profile": self.profile.name.lower(),
            **getattr(self.codec, "description", {}),
        }

    def symbols(self, rgb: np.ndarray) -> Coded:
        """``rgb: (H, W, 3)`` uint8 of any size from 1x1 -> its symbols. Raises `ImageError`."""
        if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or 0 in rgb.shape:
            raise ImageError(f"pictures are (H, W, 3) uint8, got {rgb.shape} {rgb.dtype}")
        c = self.codec
        y = c.analysis(to_tensor(pad_to(rgb, c.downsampling)))
        z = z_indexes = None
        if c.has_hyperprior:
            z = c.hyper_analysis(y)
            z_indexes = channel_indexes(z.shape)
            y_indexes, means = c.entropy_parameters(z)
        else:
            y_indexes, means = channel_indexes(y.shape), c.factorized_means(y.shape)
        if self.search is None:
            symbols = c.quantizer.quantize(y, means)
        else:
            symbols = self.search.levels(y, means, y_indexes, c.y_tables, c.quantizer.step)
        return Coded(symbols, y_indexes, means, z, z_indexes)

    def encode(self, rgb: np.ndarray) -> bytes:
        """A whole ``.rdq`` file."""
        return self.pack(self.symbols(rgb), rgb.shape[1], rgb.shape[0])

    def pack(self, coded: Coded, width: int, height: int) -> bytes:
        """Symbols to file."""
        c, z_stream = self.codec, b""
        if coded.z is not None and coded.z_indexes is not None and c.z_tables is not None:
            z_stream = entropy.encode(_flat(coded.z), _flat(coded.z_indexes), c.z_tables)
        y_stream = entropy.encode(_flat(coded.y), _flat(coded.y_indexes), c.y_tables)
        streams = (z_stream, y_stream)
        return write(self.fingerprint, self.profile, Quantizer.UNIFORM, width, height, streams)

    def decode(self, data: bytes, limits: Limits | None = None) -> np.ndarray:
        """A file to ``(H, W, 3)`` uint8. Raises an error of the `DecodeError` branch, nothing else."""
        header, (z_stream, y_stream) = read(data, limits or Limits())
        self._check(header)
        c = self.codec
        h, w = (-(-side // c.downsampling) * c.downsampling for side in (header.height, header.width))
        y_shape = torch.Size((1, c.M, h // 16, w // 16))
        if c.has_hyperprior and c.z_tables is not None:
            z_shape = torch.Size((1, len(c.z_tables.offsets), h // 64, w // 64))
            z_indexes = _flat(channel_indexes(z_shape))
            z = torch.from_numpy(entropy.decode(z_stream, z_indexes, c.z_tables)).reshape(z_shape)
            indexes, means = c.entropy_parameters(z)
        else:
            indexes, means = channel_indexes(y_shape), c.factorized_means(y_shape)
        y = torch.from_numpy(entropy.decode(y_stream, _flat(indexes), c.y_tables)).reshape(y_shape)
        return self._synthesise(y, means, header.height, header.width)

    def _check(self, header: Header) -> None:
        if header.fingerprint != self.fingerprint:
            raise ModelMismatch(header.fingerprint.hex(), self.fingerprint.hex())
        if header.profile != self.profile or header.quantizer != Quantizer.UNIFORM:
            raise UnsupportedVersion(
                f"the file needs profile {header.profile.name} with quantizer {header.quantizer.name}, "
                f"this coder has {self.profile.name} with {Quantizer.UNIFORM.name}"
            )

    def _synthesise(self, y: Tensor, means: Tensor, height: int, width: int) -> np.ndarray:
        y_hat = self.codec.quantizer.dequantize(y, means)
        return to_pixels(self.codec.synthesis(y_hat))[:height, :width]

    def forward(self, rgb: np.ndarray) -> tuple[np.ndarray, float]:
        """The codec's own forward pass, without a file: ``(decoded picture, estimated bits)``.

        The estimate is the ideal code length under the coding tables, headers and checksums left out.
        """
        coded = self.symbols(rgb)
        bits = self.codec.y_tables.bits(_flat(coded.y), _flat(coded.y_indexes))
        if coded.z is not None and coded.z_indexes is not None and self.codec.z_tables is not None:
            bits += self.codec.z_tables.bits(_flat(coded.z), _flat(coded.z_indexes))
        return self._synthesise(coded.y, coded.means, rgb.shape[0], rgb.shape[1]), bits
