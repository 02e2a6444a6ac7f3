"""The functions that networks call, as operations of a graph that is being built."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import BadModel, CaptureError
from .graph import Node
from .operations import (
    Concatenate,
    Convolution,
    Operation,
    Pointwise,
    Port,
    Product,
    Shuffle,
    Slice,
    Sum,
    Unshuffle,
)

#: functions by what we call them; methods have these names too
_FUNCTIONS: dict[Any, str] = {
    operator.add: "add", operator.iadd: "add", torch.add: "add",
    operator.sub: "sub", operator.isub: "sub", torch.sub: "sub",
    operator.mul: "mul", operator.imul: "mul", torch.mul: "mul",
    operator.truediv: "div", operator.itruediv: "div", torch.div: "div",
    operator.neg: "neg", torch.neg: "neg",
    operator.getitem: "slice", torch.cat: "cat", torch.concat: "cat",
    torch.chunk: "chunk", torch.split: "split",
    F.relu: "relu", torch.relu: "relu", F.leaky_relu: "leaky_relu", F.gelu: "gelu", F.silu: "silu",
    torch.sigmoid: "sigmoid", F.sigmoid: "sigmoid", torch.tanh: "tanh", F.tanh: "tanh", torch.abs: "abs",
    torch.clamp: "clamp", torch.clip: "clamp",
    F.pixel_shuffle: "pixel_shuffle", F.pixel_unshuffle: "pixel_unshuffle",
}  # fmt: skip
_LARGEST = torch.finfo(torch.float32).max
#: functions of one number, with their further arguments
_POINTWISE: dict[str, dict[str, float]] = {
    "relu": {}, "gelu": {}, "silu": {}, "sigmoid": {}, "tanh": {}, "abs": {},
    "leaky_relu": {"negative_slope": 0.01}, "clamp": {"min": -_LARGEST, "max": _LARGEST},
}  # fmt: skip


@dataclass(frozen=True)
class Edge:
    """A tensor of the graph."""

    name: str


@dataclass(frozen=True)
class Piece:
    """Channels of a tensor, not cut out yet."""

    of: Edge
    start: int
    stop: int


def _channels_only(dim: int) -> None:
    if dim not in (1, -3):
        raise TypeError(f"only channels, dim 1, can be joined and split, not dim {dim}")


class Builder:
    """The nodes of one network so far, and the functions that add to them, by their names: ``do_*``.

    ``taken``: names of nodes of the codec's other networks.
    """

    def __init__(self, name: str, inputs: dict[str, Port], taken: set[str]) -> None:
        self.name, self.inputs, self.taken = name, inputs, taken
        self.own: set[str] = set(inputs)
        self.nodes: list[Node] = []
        self.channels = {edge: port.channels for edge, port in inputs.items()}
        #: of the module that is being captured
        self.path = name

    def where(self) -> str:
        """The module that is being captured, for messages."""
        raise NotImplementedError

    def add(self, op: Operation, *inputs: Any, name: str = "", function: str = "") -> Edge:
        """A node; called by its module's path, or where it is and what it does."""
        inputs = tuple(self.cut(t) if isinstance(t, Piece) else t for t in inputs)
        if any(not isinstance(edge, Edge) for edge in inputs):
            raise CaptureError(f"{self.where()}: {op.kind} takes tensors, got {inputs}")
        edges = tuple(edge.name for edge in inputs)
        widths = [self.channels[edge] for edge in edges]
        if isinstance(op, Sum | Product) and len(set(widths)) > 1:
            raise CaptureError(f"{self.where()}: {op.kind} of {widths} channels; they must be equal")
        try:
            channels = op.channels(*widths)
        except BadModel as error:
            raise CaptureError(f"{self.where()}: {error}") from None
        name = self.unique(name or f"{self.path}.{function or op.kind}")
        self.nodes.append(Node(name, op, edges))
        self.channels[name] = channels
        return Edge(name)

    def cut(self, piece: Piece) -> Edge:
        return self.add(Slice(piece.start, piece.stop), piece.of, function="slice")

    def unique(self, name: str) -> str:
        """A name that no node of the codec has."""
        if name in self.taken and name not in self.own:
            name = f"{self.name}.{name}"
        found, k = name, 1
        while found in self.taken or found in self.own:
            k += 1
            found = f"{name}_{k}"
        self.taken.add(found)
        self.own.add(found)
        return found

    def function(self, called: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What ``called``, a function or the name of a method, makes of edges. Raises `CaptureError`."""
        name = called.removesuffix("_") if isinstance(called, str) else _FUNCTIONS.get(called)
        called = getattr(called, "__name__", called)
        handler: Callable[..., Any] | None = getattr(self, f"do_{name}", None)
        if name in _POINTWISE:
            handler = functools.partial(self.pointwise, name)
        if handler is None:
            raise CaptureError(f"{self.where()} calls {called}, which is no operation of a graph")
        try:
            return handler(*args, **kwargs)
        except (TypeError, IndexError, BadModel) as error:
            if isinstance(error, CaptureError):
                raise
            raise CaptureError(f"{self.where()} calls {called}: {error}") from None

    def affine(self, x: Any, factor: Any, offset: Any, function: str) -> Edge:
        """``factor * x + offset``, numbers or one value a channel, as a convolution of single channels."""
        if not isinstance(x, Edge):
            raise CaptureError(f"{self.where()}: {function} of constants")
        channels = self.channels[x.name]

        def by_channel(value: Any) -> Tensor:
            t = torch.as_tensor(value, dtype=torch.float32)
            if t.ndim > 4 or (t.ndim and t.numel() != 1 and (t.ndim < 3 or t.numel() != t.shape[-3])):
                raise CaptureError(f"{self.where()}: {function} with a constant of shape {tuple(t.shape)}")
            return t.reshape(-1).expand(channels).clone()

        weight = by_channel(factor).reshape(-1, 1, 1, 1)
        return self.add(Convolution(weight, by_channel(offset), groups=channels), x, function=function)

    def pointwise(self, name: str, input: Any, *args: float, inplace: bool = False, **kwargs: float) -> Edge:
        defaults = _POINTWISE[name]
        given = {**defaults, **dict(zip(defaults, args, strict=False)), **kwargs}
        if set(given) != set(defaults):
            raise TypeError(f"no arguments but {sorted(defaults)} are supported, got {given}")
        return self.add(Pointwise(name, tuple(given.values())), input, function=name)

    def do_add(self, a: Any, b: Any) -> Edge:
        if isinstance(a, Edge) and isinstance(b, Edge):
            return self.add(Sum((1, 1)), a, b, function="add")
        return self.affine(a, 1, b, "add") if isinstance(a, Edge) else self.affine(b, 1, a, "add")

    def do_sub(self, a: Any, b: Any) -> Edge:
        if isinstance(a, Edge) and isinstance(b, Edge):
            return self.add(Sum((1, -1)), a, b, function="sub")
        return self.affine(a, 1, -b, "sub") if isinstance(a, Edge) else self.affine(b, -1, a, "sub")

    def do_mul(self, a: Any, b: Any) -> Edge:
        if isinstance(a, Edge) and isinstance(b, Edge):
            return self.add(Product(), a, b, function="mul")
        return self.affine(a, b, 0, "mul") if isinstance(a, Edge) else self.affine(b, a, 0, "mul")

    def do_div(self, a: Any, b: Any) -> Edge:
        if isinstance(b, Edge):
            raise CaptureError(f"{self.where()} divides by a tensor, which is no operation of a graph")
        return self.affine(a, 1 / b, 0, "div")

    def do_neg(self, a: Any) -> Edge:
        return self.affine(a, -1, 0, "neg")

    def do_cat(self, tensors: Any, dim: int = 0) -> Edge:
        _channels_only(dim)
        return self.add(Concatenate(), *tensors, function="cat")

    def do_chunk(self, x: Edge, chunks: int, dim: int = 0) -> list[Piece]:
        return self.do_split(x, -(-self.channels[x.name] // chunks), dim)

    def do_split(self, x: Edge, size: Any, dim: int = 0) -> list[Piece]:
        _channels_only(dim)
        count = self.channels[x.name]
        if isinstance(size, int):
            sizes = [min(size, count - at) for at in range(0, count, size)]
        else:
            sizes = list(size)
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        return [Piece(x, end - n, end) for n, end in zip(sizes, ends, strict=True)]

    def do_slice(self, x: Any, index: Any) -> Any:
        if isinstance(x, list):
            return self.cut(x[index]) if isinstance(index, int) else x[index]
        every = slice(None)
        batch, channels, *rest = index if isinstance(index, tuple) and len(index) > 1 else (index, every)
        if batch != every or not isinstance(channels, slice) or any(i not in (every, ...) for i in rest):
            raise TypeError(f"only channels can be sliced, not {index}")
        start, stop, step = channels.indices(self.channels[x.name])
        if step != 1:
            raise TypeError(f"channels can only be sliced by steps of 1, not {step}")
        return self.add(Slice(start, stop), x, function="slice")

    def do_pixel_shuffle(self, input: Any, upscale_factor: int) -> Edge:
        return self.add(Shuffle(upscale_factor), input, function="pixel_shuffle")

    def do_pixel_unshuffle(self, input: Any, downscale_factor: int) -> Edge:
        return self.add(Unshuffle(downscale_factor), input, function="pixel_unshuffle")

    def do_contiguous(self, input: Any) -> Any:
        return input

    do_clone = do_contiguous
