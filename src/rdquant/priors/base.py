"""How latents are coded, given what is decoded so far: one loop for every kind of entropy model.

The latent y is cut into parts. A decoder goes through them in order; for each, the prior says with which
table and around which mean every symbol of the part is coded, from the hyper-latent and the parts before it::

    features = prior.begin(run, z_hat)
    for part, scales, means in prior.walk(run, features, y_hat):
        ... decode the symbols of the part, put their values into y_hat ...

A prior is structure alone: its networks are called by name through ``run``, be they modules in training,
captured graphs or integer engines. Part by part it works on arrays; all parts at once, in training, on
tensors. It round-trips through JSON, and is what a model file says of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

import numpy as np

from ..errors import BadModel

if TYPE_CHECKING:
    from torch import Tensor

#: an array or a tensor
V = TypeVar("V", bound=Any)


class Run(Protocol[V]):
    """Run a network by name, on arrays, or on tensors that may have gradients.

    ``valid``: convolutions are not padded: patches give single positions.
    """

    def __call__(self, name: str, *inputs: V, valid: bool = False) -> V: ...


class RunArrays(Protocol):
    """The same on arrays. ``part``: what `Part.pick` takes of the output, the rest of which is not needed."""

    def __call__(
        self, name: str, *inputs: np.ndarray, valid: bool = False, part: Part | None = None
    ) -> np.ndarray: ...


@dataclass(frozen=True)
class Part:
    """What is decoded at a time: some positions of each of ``channels``, row by row, in the order given here.

    ``positions: (G, n)`` int64, into the H * W of the latent, rising in each row; row g is that of the g-th
    G-th of the channels. None: all positions. ``step``: 0, or a row has all positions that are so many rows
    and columns apart, from its first one on, which is one of the first so many; slices of them are quicker.
    """

    channels: slice
    positions: np.ndarray | None = None
    step: int = 0

    def take(self, t: np.ndarray) -> np.ndarray:
        """``t: (B, M, H, W)`` -> ``(B, C, 1, n)``."""
        return self.pick(t[:, self.channels])

    def pick(self, t: np.ndarray) -> np.ndarray:
        """The same, of an array that has the part's channels alone, once or several times (scales, then
        means): ``(B, k C, H, W)`` -> ``(B, k C, 1, n)``.
        """
        if self.positions is None:
            return t.reshape(*t.shape[:2], 1, -1)
        found = np.empty((*t.shape[:2], 1, self.positions.shape[1]), t.dtype)
        count = self.channels.stop - self.channels.start
        for first in range(0, t.shape[1], count):
            whole, into = t[:, first : first + count], found[:, first : first + count]
            for own, place in self.groups(whole.shape):
                there = whole[:, own][..., *place]
                into[:, own].reshape(there.shape)[:] = there
        return found

    def put(self, values: np.ndarray, into: np.ndarray) -> None:
        """The inverse, in place: ``values: (B, C, 1, n)`` into ``(B, M, H, W)``."""
        t = into[:, self.channels]
        if self.positions is None:
            t[:] = values.reshape(t.shape)
            return
        for own, place in self.groups(t.shape):
            there = t[:, own]
            there[..., *place] = values[:, own].reshape(there[..., *place].shape)

    def groups(self, shape: tuple[int, ...]) -> Iterator[tuple[slice, tuple[Any, Any]]]:
        """Channels that share positions, and the rows and columns of these. ``shape``: (B, C, H, W)."""
        assert self.positions is not None
        each = shape[1] // len(self.positions)
        for g, at in enumerate(self.positions):
            place: tuple[Any, Any] = np.divmod(at, shape[3])
            if self.step:
                place = slice(int(place[0][0]), None, self.step), slice(int(place[1][0]), None, self.step)
            yield slice(g * each, (g + 1) * each), place


@dataclass(frozen=True)
class Prior:
    """Base of all kinds. ``means``: networks give scales, then means; else scales alone, and means are 0."""

    kind: ClassVar[str]
    #: whether there is a hyper-latent z, with networks "hyper_analysis" and "hyper_synthesis"
    hyper: ClassVar[bool] = True
    #: None, or why a trellis cannot code this
    no_trellis: ClassVar[str | None] = None

    @property
    def networks(self) -> dict[str, tuple[str, ...]]:
        """Network -> what its inputs are: "y", "z", "y_hat" (of earlier parts, zeros elsewhere), or another
        network whose features it takes; in the order in which a decoder meets them, "hyper_analysis" first.
        """
        return {"hyper_analysis": ("y",), "hyper_synthesis": ("z",)}

    @property
    def has_contexts(self) -> bool:
        """Whether a part of the latent is coded given other parts."""
        return any("y_hat" in sources for sources in self.networks.values())

    @property
    def pointwise(self) -> tuple[str, ...]:
        """Networks whose output may depend on nothing but its own position."""
        return ()

    @property
    def masked(self) -> tuple[str, ...]:
        """Networks of one 5x5 convolution, of what is above and to the left, and of pointwise operations."""
        return ()

    def seen(self, name: str, channels: int) -> int:
        """Channels of y_hat that a network takes, of ``channels``."""
        return channels

    def check(self, channels: int, side: int) -> None:
        """Raise `BadModel` unless latents of ``channels`` and multiples of ``side`` rows can be cut."""

    def outputs(self, channels: int) -> dict[str, int]:
        """Of the networks that give parameters: how many channels of y they give them for."""
        raise NotImplementedError

    def parts(self, channels: int, height: int, width: int) -> list[Part]:
        """Of a latent ``(B, channels, height, width)``, in order; together all of it, and nothing twice."""
        return [Part(slice(0, channels))]

    def begin(self, run: Run[V], z_hat: V) -> V:
        """What all parts take of the hyper-latent."""
        return run("hyper_synthesis", z_hat)

    def walk(
        self, run: RunArrays, features: np.ndarray, y_hat: np.ndarray
    ) -> Iterator[tuple[Part, np.ndarray, np.ndarray | None]]:
        """Part after part, with scales and means of its symbols, ``(B, C, 1, n)`` each.

        ``y_hat: (B, M, H, W)``, zeros at first: the caller puts the values of a part there before
        it asks for the next.
        """
        raise NotImplementedError

    def all_parameters(
        self, run: Run[Tensor], features: Tensor, y_hat: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Scales and means of the whole latent, ``(B, M, H, W)``, for a ``y_hat`` that is known: with
        gradients, in few passes. What `walk` gives part by part.
        """
        raise NotImplementedError

    def parameters_of_rounded(
        self, run: Run[Tensor], features: Tensor, y: Tensor
    ) -> tuple[Tensor, Tensor | None] | None:
        """`all_parameters` where contexts see each part rounded around its own means, as in a file; gradients
        pass straight through the rounding. None for priors of too many parts to train like that.
        """
        return None

    def split(self, out: V) -> tuple[V, V | None]:
        """A parameter network's output into scales and means."""
        if not self.means:  # type: ignore[attr-defined]
            return out, None
        half = out.shape[1] // 2
        return out[:, :half], out[:, half:]

    def of(self, part: Part, out: np.ndarray) -> tuple[Part, np.ndarray, np.ndarray | None]:
        """What `walk` yields, of a parameter network's output for the channels of the part."""
        scales, means = self.split(out)
        return part, part.pick(scales), None if means is None else part.pick(means)

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, **dataclasses.asdict(self)}


PRIORS: dict[str, type[Prior]] = {}


def register(cls: type[Prior]) -> type[Prior]:
    PRIORS[cls.kind] = cls
    return cls


def prior_from_json(data: dict[str, Any]) -> Prior:
    """The prior that a model file describes; its fields are of the right types. Raises `BadModel`."""
    fields = dict(data)
    cls = PRIORS.get(str(fields.pop("kind", None)))
    if cls is None:
        raise BadModel(f"unknown prior {data.get('kind')!r}; known: {', '.join(PRIORS)}")
    try:
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})
    except (TypeError, ValueError) as error:
        raise BadModel(f"prior {cls.kind}: {error}") from None


def checkerboard(height: int, width: int, parity: int) -> np.ndarray:
    """Positions (r, c) with ``(r + c) % 2 == parity``, bool ``(height, width)``."""
    return (np.arange(height)[:, None] + np.arange(width)[None, :]) % 2 == parity
