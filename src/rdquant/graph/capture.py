"""From a codec of PyTorch modules to graphs of float operations.

Networks are traced by `torch.fx`, and what its trace holds must be of the closed set of operations:

- modules: Conv2d and ConvTranspose2d with "same" padding (also masked: a ``mask`` multiplies their kernels);
  ReLU, ReLU6, LeakyReLU, GELU, SiLU, Sigmoid, Tanh, Hardtanh; PixelShuffle and PixelUnshuffle; Identity and
  Dropout; GDN, rdquant's or CompressAI's; and whatever has a method ``operation()`` that gives one, as
  `rdquant.codecs.layers.LayerNorm2d` and `WindowAttention` do;
- functions and methods: ``+``, ``-`` and ``*`` of tensors; the same and ``/`` with numbers and parameters of
  one value a channel (which become 1x1 convolutions of single channels); ``torch.cat``, ``chunk``, ``split``
  and slices of channels; and the functions of the modules above.

Modules made of these, at any depth, are looked into. Anything else is a `CaptureError` that names the module.

Why `torch.fx`, and not `torch.export`, which was tried: a graph is to be quantized by layers as their author
cut them, and is to name them so. Exported, the synthesis of `mbt2018-mean` is 52 operations, where it is 7
here, that of `window-attention` 242 instead of 35, each for one fixed size of picture: a GDN is a clamp, a
power, a convolution, a root and a product.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from ..codec import Codec
from ..codecs.bottleneck import density
from ..codecs.protocol import TrainedCodec, network
from ..entropy import gaussian_tables, pmf_tables, scale_boundaries, scale_table
from ..errors import CaptureError
from ..latents import UniformScalar
from ..priors import Part
from .functions import Builder, Edge
from .graph import Graph
from .modules import operations_of
from .operations import Operation, Port, WindowAttention

#: largest relative difference between a graph and the modules that it was captured from
TOLERANCE = 1e-3


def capture(codec: TrainedCodec) -> Codec:
    """The float codec that codes pictures, of graphs alone. Weights are copied.

    Raises `CaptureError` for what no graph can be made of, `BadModel` for networks that the prior lacks.
    """
    graphs: dict[str, Graph] = {}
    taken: set[str] = set()
    stated, hyper, root = codec.prior.networks, codec.prior.hyper, _Root(codec)

    def trace(name: str, sources: tuple[str, ...], channels: tuple[int, ...]) -> Graph:
        ports = {source: Port(n, 0, 0) for source, n in zip(sources, channels, strict=True)}
        root.calls = [network(codec, name)]
        return _Network(root, name, ports, taken).graph()

    def run(name: str, *inputs: np.ndarray, valid: bool = False, part: Part | None = None) -> np.ndarray:
        """Capture what is not captured yet; give zeros of the right shape."""
        if name not in graphs:
            graphs[name] = trace(name, stated[name], tuple(t.shape[1] for t in inputs))
        graph = graphs[name]
        b, _, h, w = inputs[0].shape
        scale = graph.resolutions()[graph.output]
        sides = (1, 1) if valid else (int(h * scale), int(w * scale))
        out = np.zeros((b, graph.channels()[graph.output], *sides), np.float32)
        return out if part is None else part.pick(out)

    analysis = trace("analysis", ("x",), (3,))
    M = analysis.channels()[analysis.output]
    bottleneck = density(codec.entropy_bottleneck)
    factorized = pmf_tables(*bottleneck.pmfs())
    if hyper:
        y = np.zeros((1, M, 16, 16), np.float32)
        features = codec.prior.begin(run, run("hyper_analysis", y))
        for _ in codec.prior.walk(run, features, y):
            pass
    if missing := sorted(set(stated) - set(graphs)):
        raise CaptureError(f"the prior of {codec.architecture!r} does not run {', '.join(missing)}")
    graphs = {"analysis": analysis, **graphs, "synthesis": trace("synthesis", ("y_hat",), (M,))}
    return Codec(
        codec.architecture,
        graphs,
        codec.prior,
        gaussian_tables(scale_table()) if hyper else factorized,
        factorized if hyper else None,
        scale_boundaries(scale_table()) if hyper else None,
        bottleneck.medians().detach().float().reshape(-1).cpu().numpy().copy(),
        UniformScalar(),
    )


class _Root(nn.Module):
    """A codec as a module, whose children have the codec's paths and whose forward is one of its networks."""

    def __init__(self, codec: TrainedCodec) -> None:
        super().__init__()
        if isinstance(codec, nn.Module):
            for key, p in codec.named_parameters(recurse=False):
                self.register_parameter(key, p)
            for key, b in codec.named_buffers(recurse=False):
                self.register_buffer(key, b)
        for key, m in codec.named_children() if isinstance(codec, nn.Module) else vars(codec).items():
            if isinstance(m, nn.Module):
                self.add_module(key, m)
        # before tracing, where parameters have no values
        self.operations = {m: _or_error(m) for m in self.modules()}
        #: in a list, lest a network that is a module become a child
        self.calls: list[Callable[..., Tensor]] = []

    def of_1(self, a: Tensor) -> Tensor:
        return self.calls[0](a)

    def of_2(self, a: Tensor, b: Tensor) -> Tensor:
        return self.calls[0](a, b)

    def of_3(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return self.calls[0](a, b, c)


def _or_error(m: nn.Module) -> list[Operation] | CaptureError | None:
    try:
        return operations_of(m)
    except CaptureError as error:  # it may not be part of any network
        return error


class _Tracer(fx.Tracer):
    """Stops at operations, and at modules of PyTorch that are none."""

    def __init__(self, root: _Root, method: str) -> None:
        super().__init__()
        self.traced_func_name, self.operations = method, root.operations

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        own = not m.__module__.startswith("torch.nn") or m.__module__.endswith(".container")
        return self.operations[m] is not None or not own

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **named: Any) -> Any:
        """What ``chunk``, and ``split`` into given sizes, give is a tuple, as it is outside of a trace."""
        found: Any = super().create_proxy(kind, target, args, kwargs, *rest, **named)
        name, how = getattr(target, "__name__", target), args[1] if len(args) > 1 else None
        if name == "chunk" and isinstance(how, int):
            return tuple(found[i] for i in range(how))
        if name == "split" and isinstance(how, list | tuple):
            return tuple(found[i] for i in range(len(how)))
        return found


class _Network(Builder):
    """One network, from its trace to its graph."""

    def __init__(self, root: _Root, name: str, inputs: dict[str, Port], taken: set[str]) -> None:
        super().__init__(name, inputs, taken)
        self.root = root

    def graph(self) -> Graph:
        """Raises `CaptureError`."""
        tracer = _Tracer(self.root, f"of_{len(self.inputs)}")
        try:
            traced = tracer.trace(self.root)
        except (fx.proxy.TraceError, NameError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            at = next(reversed(tracer.module_stack.values()), (self.name, None))[0]
            raise CaptureError(f"{at} cannot be traced: {error}") from error
        given = iter(self.inputs)
        values: dict[fx.Node, Any] = {}
        for node in traced.nodes:
            stack = node.meta.get("nn_module_stack") or {}
            self.path = next(reversed(stack.values()))[0] if stack else self.name
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            if node.op == "placeholder":
                values[node] = Edge(next(given))
            elif node.op == "output":
                output = args[0]
            else:
                values[node] = self.value(node, args, kwargs)
        if not isinstance(output, Edge):
            raise CaptureError(f"{self.name} must give one tensor, got {output!r}")
        graph = Graph(self.inputs, tuple(self.nodes), output.name).trimmed()
        self.verify(graph)
        return graph

    def value(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a node of the trace is: an edge, several, or a constant."""
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self.root).detach().cpu().float()
        if node.op == "call_module":
            return self.module(self.root.get_submodule(str(node.target)), args)
        return self.function(str(node.target) if node.op == "call_method" else node.target, args, kwargs)

    def where(self) -> str:
        if self.path == self.name:
            return f"network {self.name}"
        return f"{self.path} ({type(self.root.get_submodule(self.path)).__name__})"

    def module(self, m: nn.Module, args: tuple[Any, ...]) -> Any:
        ops = self.root.operations[m]
        if isinstance(ops, CaptureError):
            raise CaptureError(f"{self.where()}: {ops}")
        if ops is None or len(args) != 1 or not isinstance(args[0], Edge):
            raise CaptureError(f"{self.where()} is no operation of a graph")
        edge = args[0]
        for op in ops:
            edge = self.add(op, edge, name=self.path)
        return edge

    def verify(self, graph: Graph) -> None:
        """Raise `CaptureError` unless the graph computes what the modules do."""
        at, attends = graph.resolutions(), graph.names(WindowAttention)
        windows = {n: graph[n].op.window for n in attends}  # type: ignore[attr-defined]
        side = math.lcm(*((Fraction(windows.get(edge, 1)) / scale).numerator for edge, scale in at.items()))
        side *= -(-8 // side)
        device = next((p.device for p in self.root.parameters()), torch.device("cpu"))
        random = torch.Generator().manual_seed(0)
        with torch.no_grad():
            x = [torch.rand(1, p.channels, side, side, generator=random) * 2 for p in self.inputs.values()]
            wanted = self.root.calls[0](*(t.to(device) for t in x)).cpu()
            found = graph.real(*x)
        if wanted.shape != found.shape or not bool(torch.isfinite(wanted).all()):
            shapes = tuple(wanted.shape), tuple(found.shape)
            raise CaptureError(f"network {self.name} gives {shapes[0]}, or infinities; its graph {shapes[1]}")
        apart = float((wanted - found).abs().max())
        if apart > TOLERANCE * float(wanted.abs().max()) + 1e-6:
            raise CaptureError(
                f"network {self.name} differs from its graph by {apart:.3g}: is it no pure function?"
            )
