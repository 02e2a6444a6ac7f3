"""A codec as one JSON object and named tensors: what integer models are stored and named as.

Operations and priors are taken apart by the types of their fields. Whole numbers, flags, words and tuples of
whole numbers are attributes; tensors and multipliers are tensors, called ``node.field``; what is None is left
out, and so are floats, which mean nothing to integers.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ..codec import Codec
from ..entropy import CdfTables
from ..errors import BadModel
from ..graph import OPERATIONS, Graph, Node, Port
from ..graph.arithmetic import Multiplier
from ..graph.operations import Convolution
from ..graph.operations.base import Values
from ..latents import FixedPointScalar
from ..priors import PRIORS, prior_from_json

_ATTRIBUTES = (int, bool, str, tuple[int, ...])
_REAL = (float, tuple[float, ...])
#: magnitudes of whole numbers in a structure stay below
NUMBER_LIMIT = 2**53
#: arrays of CDF tables in memory
ARRAYS = ("cdf", "starts", "offsets")


class _Field(NamedTuple):
    type: Any
    optional: bool


@functools.cache
def _fields(cls: Any) -> dict[str, _Field]:
    """What a dataclass stores in a model."""
    hints, found = typing.get_type_hints(cls), {}
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        union = typing.get_origin(hint) in (types.UnionType, typing.Union)
        options = typing.get_args(hint) if union else (hint,)
        (kind,) = (option for option in options if option is not types.NoneType)
        if kind in (*_ATTRIBUTES, Values, Multiplier):
            found[field.name] = _Field(kind, len(options) > 1)
        elif kind not in _REAL:
            raise TypeError(f"{cls.__name__}.{field.name} is of a type that no model file has: {hint}")
    return found


def attributes(item: Any) -> dict[str, Any]:
    """Of an operation or a prior: what JSON says of it."""
    cls: Any = type(item)
    found = {n: getattr(item, n) for n, f in _fields(cls).items() if f.type in _ATTRIBUTES}
    return {n: list(v) if isinstance(v, tuple) else v for n, v in found.items()}


def tensors_of(item: Any) -> dict[str, np.ndarray]:
    """Of an operation, by field."""
    found = {}
    cls: Any = type(item)
    for name, field in _fields(cls).items():
        value = getattr(item, name)
        if value is not None and field.type is Multiplier:
            found[f"{name}.m"], found[f"{name}.shift"] = value.m, value.shift
        elif value is not None and field.type is Values:
            found[name] = value
    return found


def take_apart(codec: Codec) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Structure and tensors, whole. Raises `BadModel` where two things would have one name."""
    tensors: dict[str, np.ndarray] = {"medians": codec.medians}
    if codec.thresholds is not None:
        tensors["thresholds"] = codec.thresholds
    for name, tables in (("y_tables", codec.y_tables), ("z_tables", codec.z_tables)):
        if tables is not None:
            tensors |= {f"{name}.{array}": getattr(tables, array) for array in ARRAYS}
    networks: dict[str, Any] = {}
    for name, graph in codec.networks.items():
        entries = []
        for node in graph.nodes:
            own = {f"{node.name}.{field}": t for field, t in tensors_of(node.op).items()}
            if twice := sorted(own.keys() & tensors.keys()):
                raise BadModel(f"two tensors are called {twice[0]}")
            tensors |= own
            entry = {
                "name": node.name,
                "kind": node.op.kind,
                "inputs": list(node.inputs),
                **attributes(node.op),
            }
            if isinstance(node.op, Convolution):
                entry["shape"] = list(node.op.weight.shape)
            entries.append(entry)
        inputs = [[n, port.channels, port.lo, port.hi] for n, port in graph.inputs.items()]
        networks[name] = {"inputs": inputs, "output": graph.output, "nodes": entries}
    structure = {
        "architecture": codec.architecture, "prior": {"kind": codec.prior.kind, **attributes(codec.prior)},
        "fraction_bits": codec.fraction_bits, "networks": networks,
    }  # fmt: skip
    check_structure(structure)
    return structure, tensors


def entries_of(structure: dict[str, Any]) -> list[dict[str, Any]]:
    """The nodes of all networks."""
    return [entry for network in structure["networks"].values() for entry in network["nodes"]]


# from a file


def _checked(name: str, kind: Any, value: Any) -> Any:
    """``value`` from JSON, a list as a tuple. Raises `BadModel` unless it is of a type."""
    several = kind == tuple[int, ...]
    parts = value if several and isinstance(value, list) else [value]
    wanted = int if several else kind
    fits = all(type(part) is wanted and (wanted is not int or abs(part) < NUMBER_LIMIT) for part in parts)
    if not fits or several != (parts is value):
        raise BadModel(f"{name} must be {kind if several else kind.__name__}, got {str(value)[:80]!r}")
    return tuple(value) if several else value


def _check_keys(name: str, found: Any, expected: set[str]) -> None:
    if not isinstance(found, dict) or found.keys() != expected:
        what = sorted(found) if isinstance(found, dict) else str(found)[:80]
        raise BadModel(f"{name} must have {sorted(expected)}, got {what!r}")


def _kind(name: str, entry: Any, known: Mapping[str, Any]) -> Any:
    """The class of an operation or a prior."""
    kind = entry.get("kind") if isinstance(entry, dict) else None
    if not isinstance(kind, str) or kind not in known:
        raise BadModel(f"{name} is of an unknown kind {str(kind)[:80]!r}; known: {', '.join(known)}")
    return known[kind]


def _check_attributes(name: str, cls: Any, entry: dict[str, Any], *others: str) -> None:
    kinds = {n: f.type for n, f in _fields(cls).items() if f.type in _ATTRIBUTES}
    _check_keys(name, entry, {"kind", *others, *kinds})
    for attribute, kind in kinds.items():
        _checked(f"{name}.{attribute}", kind, entry[attribute])


def check_structure(structure: Any) -> None:
    """Raise `BadModel` unless everything is there, of its type, and nothing else."""
    _check_keys("structure", structure, {"architecture", "prior", "fraction_bits", "networks"})
    _checked("architecture", str, structure["architecture"])
    _checked("fraction_bits", int, structure["fraction_bits"])
    _check_attributes("prior", _kind("prior", structure["prior"], PRIORS), structure["prior"])
    names: set[str] = set()
    if not isinstance(structure["networks"], dict):
        raise BadModel("networks must be an object")
    for network, graph in structure["networks"].items():
        _check_keys(network, graph, {"inputs", "output", "nodes"})
        _checked(f"{network}.output", str, graph["output"])
        if not isinstance(graph["inputs"], list) or not isinstance(graph["nodes"], list):
            raise BadModel(f"{network} must have lists of inputs and nodes")
        for port in graph["inputs"]:
            if not isinstance(port, list) or len(port) != 4:
                raise BadModel(
                    f"an input of {network} must be [name, channels, lo, hi], got {str(port)[:80]}"
                )
            for kind, value in zip((str, int, int, int), port, strict=True):
                _checked(f"an input of {network}", kind, value)
        for entry in graph["nodes"]:
            _check_node(network, entry, names)


def _check_node(network: str, entry: Any, names: set[str]) -> None:
    cls = _kind(f"a node of {network}", entry, OPERATIONS)
    name = _checked(f"name of a node of {network}", str, entry.get("name"))
    if name in names:
        raise BadModel(f"two nodes are called {name}")
    names.add(name)
    _check_attributes(name, cls, entry, "name", "inputs", *(["shape"] if cls is Convolution else []))
    inputs = entry["inputs"]
    if not isinstance(inputs, list) or not all(isinstance(edge, str) for edge in inputs):
        raise BadModel(f"{name}.inputs must be names, got {str(inputs)[:80]}")
    if cls is Convolution:
        shape = _checked(f"{name}.shape", tuple[int, ...], entry["shape"])
        if len(shape) != 4 or min(shape) < 1:
            raise BadModel(f"{name}.weight must have 4 axes, got {list(shape)}")
        if entry["groups"] < 1 or shape[0] % entry["groups"]:
            raise BadModel(f"{name}.groups must divide {shape[0]} channels, got {entry['groups']}")


def fit(name: str, t: np.ndarray, dtype: type) -> np.ndarray:
    """``t`` in another integer type. Raises `BadModel` if that cannot hold its values."""
    info = np.iinfo(dtype)
    if t.size and not info.min <= int(t.min()) <= int(t.max()) <= info.max:
        raise BadModel(f"{name} does not fit {info.dtype}")
    return t.astype(dtype)


def take_tables(name: str, tensors: dict[str, np.ndarray]) -> CdfTables:
    """Out of whole ``tensors``. Raises `KeyError`; `CdfTables.validate` what comes out."""
    return CdfTables(*(np.ascontiguousarray(fit(name, tensors.pop(f"{name}.{a}"), np.int32)) for a in ARRAYS))


def put_together(structure: dict[str, Any], tensors: Mapping[str, np.ndarray], description: Any) -> Codec:
    """The inverse of `take_apart` of a structure that `check_structure` has seen; `Codec.check` what comes
    out. Raises `BadModel` for tensors that are missing or that nothing takes.
    """
    left = dict(tensors)

    def take(name: str, dtype: type = np.int32) -> np.ndarray:
        return fit(name, left.pop(name), dtype)

    def operation(entry: dict[str, Any]) -> Any:
        cls: Any = OPERATIONS[entry["kind"]]
        arguments: dict[str, Any] = {}
        for field, (kind, optional) in _fields(cls).items():
            name = f"{entry['name']}.{field}"
            if kind in _ATTRIBUTES:
                arguments[field] = _checked(name, kind, entry[field])
            elif optional and (f"{name}.m" if kind is Multiplier else name) not in left:
                arguments[field] = None
            elif kind is Multiplier:
                arguments[field] = Multiplier(take(f"{name}.m"), take(f"{name}.shift"))
            else:
                arguments[field] = take(name, cls.integers.get(field, np.int32))
        return cls(**arguments)

    networks = {
        name: Graph(
            {port[0]: Port(*port[1:]) for port in graph["inputs"]},
            tuple(Node(entry["name"], operation(entry), tuple(entry["inputs"])) for entry in graph["nodes"]),
            graph["output"],
        )
        for name, graph in structure["networks"].items()
    }
    prior = prior_from_json(structure["prior"])
    codec = Codec(
        structure["architecture"],
        networks,
        prior,
        take_tables("y_tables", left),
        take_tables("z_tables", left) if prior.hyper else None,
        take("thresholds") if prior.hyper else None,
        take("medians"),
        FixedPointScalar(structure["fraction_bits"]),
        _checked("description", dict, description),
    )
    if left:
        raise BadModel(f"unexpected tensors: {', '.join(sorted(left)[:5])}")
    return codec
