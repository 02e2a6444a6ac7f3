from __future__ import annotations

import copy
import dataclasses
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import handmade
from conftest import small_codec
from rdquant.codecs import ARCHITECTURES
from rdquant.errors import BadModel, UnknownModel, UsageError
from rdquant.files.bits import packed_size
from rdquant.files.float_models import float_fingerprint, load_float, save_float
from rdquant.files.inspect import MODEL_COLUMNS, inspect_model
from rdquant.files.integer_models import (
    file_bytes,
    integer_fingerprint,
    load_integer,
    save_integer,
    stored_bytes,
    weight_bytes,
)
from rdquant.files.model_file import model_kind, read
from rdquant.files.structure import attributes, tensors_of
from rdquant.graph import OPERATIONS, Node
from rdquant.graph.arithmetic import Multiplier
from rdquant.graph.operations import Concatenate, Convolution, Requantize, Slice

Change = Callable[[Any], Any]


@pytest.fixture(scope="module")
def pixels(photo: np.ndarray) -> np.ndarray:
    return photo[:64, 128:192]


@pytest.fixture(scope="module")
def integer_file(tmp_path_factory: pytest.TempPathFactory, pixels: np.ndarray) -> Path:
    path = tmp_path_factory.mktemp("models") / "q.rdqm"
    save_integer(handmade.codec("elic", pixels), path)
    return path


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_float_round_trip(architecture: str, tmp_path: Path) -> None:
    codec, path = small_codec(architecture), tmp_path / "m.safetensors"
    save_float(codec, path, half=False)
    assert model_kind(path) == "float"
    again = load_float(path)
    assert float_fingerprint(again) == float_fingerprint(codec) and again.options() == codec.options()
    save_float(codec, path)
    assert float_fingerprint(load_float(path)) != float_fingerprint(codec)


@pytest.mark.parametrize(
    "options", [{}, {"N": 8}, {"N": 10**9, "M": 12}, {"N": 9, "M": 12}, {"N": "8", "M": 12}]
)
def test_lies_about_a_float_codec_allocate_nothing(options: dict[str, Any], tmp_path: Path) -> None:
    save_float(small_codec("mbt2018-mean"), tmp_path / "m")
    header, tensors = read(tmp_path / "m")
    header["structure"] = {"architecture": "mbt2018-mean", **options}
    save_file(tensors, str(tmp_path / "m"), {"rdquant": json.dumps(header)})
    with pytest.raises(BadModel, match=r"bad structure|has shape"):
        load_float(tmp_path / "m")


@pytest.mark.parametrize("kind", handmade.PRIORS)
def test_integer_round_trip(kind: str, tmp_path: Path, pixels: np.ndarray) -> None:
    codec, path = handmade.codec(kind, pixels), tmp_path / "q.rdqm"
    codec.description["note"] = "by hand"
    save_integer(codec, path)
    again = load_integer(path)
    assert model_kind(path) == "integer"
    assert integer_fingerprint(again) == integer_fingerprint(codec)
    assert (again.description, again.prior, again.architecture) == (
        codec.description,
        codec.prior,
        codec.architecture,
    )
    for name, graph in codec.networks.items():
        found = again.networks[name]
        assert (found.inputs, found.output) == (graph.inputs, graph.output)
        for a, b in zip(found.nodes, graph.nodes, strict=True):
            assert (a.name, a.inputs, attributes(a.op)) == (b.name, b.inputs, attributes(b.op))
            ours, theirs = tensors_of(a.op), tensors_of(b.op)
            assert ours.keys() == theirs.keys()
            for field, t in ours.items():
                assert t.dtype == theirs[field].dtype and np.array_equal(t, theirs[field]), (
                    f"{a.name}.{field}"
                )


def test_the_handmade_codec_has_every_operation(pixels: np.ndarray) -> None:
    codec = handmade.codec("elic", pixels)
    assert {n.op.kind for g in codec.networks.values() for n in g.nodes} == set(OPERATIONS) - {
        "gain"
    }  # a golden model has it


def test_sizes_are_the_files(tmp_path: Path, pixels: np.ndarray) -> None:
    """And coded weights take less than packed ones, whose size is known."""
    codec = handmade.codec("elic", pixels)
    save_integer(codec, tmp_path / "q")
    assert file_bytes(codec) == (tmp_path / "q").stat().st_size
    convolutions = [n for g in codec.networks.values() for n in g.nodes if isinstance(n.op, Convolution)]
    packed = {n.name: packed_size(n.op.weight.size, n.op.bits) for n in convolutions}
    sizes = weight_bytes(codec)
    assert sizes.keys() == packed.keys()
    assert 0.5 < sum(sizes.values()) / sum(packed.values()) < 0.97
    for node in convolutions:
        levels = 0 if node.op.levels is None else len(node.op.levels)
        assert sizes[node.name] <= packed[node.name] + levels
        if node.op.bits > 8:
            assert sizes[node.name] == packed[node.name]
    assert sum(stored_bytes(codec).values()) > sum(sizes.values())


def test_a_masked_kernel_takes_what_its_other_half_takes(pixels: np.ndarray) -> None:
    codec = handmade.codec("serial", pixels)
    (name,) = codec.networks["context"].names(Convolution)
    weight = codec.networks["context"][name].op.weight
    assert weight_bytes(codec)[name] < 0.6 * packed_size(weight.size, 7)


def test_inspect_shows_the_whole_graph(integer_file: Path) -> None:
    codec, found = load_integer(integer_file), inspect_model(integer_file)
    assert found["prior"] == {
        "kind": "channel_groups",
        "groups": (2, 2, 4),
        "checkerboard": True,
        "means": True,
    }
    rows = {row[0]: dict(zip(MODEL_COLUMNS, row, strict=True)) for row in found["rows"]}
    nodes = [n for g in codec.networks.values() for n in g.nodes]
    assert list(rows) == [*(n.name for n in nodes), "y tables", "z tables"]
    for node in nodes:
        assert rows[node.name]["inputs"] == ", ".join(node.inputs)
    stored = sum(
        n for name, n in stored_bytes(codec).items() if name.split(".")[0] in codec.networks or "g_" in name
    )
    assert sum(rows[n.name]["bytes"] for n in nodes) == stored


def test_a_float_codec_is_not_an_integer_model(tmp_path: Path, pixels: np.ndarray) -> None:
    from rdquant.latents import UniformScalar

    codec = dataclasses.replace(handmade.codec("means", pixels), quantizer=UniformScalar())
    with pytest.raises(UsageError, match="quantize it first"):
        save_integer(codec, tmp_path / "q")


def test_two_nodes_of_one_name_are_refused(tmp_path: Path, pixels: np.ndarray) -> None:
    codec = handmade.codec("means", pixels)
    analysis = codec.networks["analysis"]
    twice = dataclasses.replace(codec, networks={**codec.networks, "synthesis": analysis})
    with pytest.raises(BadModel, match=r"two tensors are called g_a\.0"):
        integer_fingerprint(twice)


def test_infinite_in_half_precision_is_refused(tmp_path: Path) -> None:
    codec = small_codec("bmshj2018-factorized")
    with torch.no_grad():
        codec.g_a[0].bias[0] = 1e6
    with pytest.raises(BadModel, match=r"g_a\.0\.bias is not finite in float16"):
        save_float(codec, tmp_path / "m.safetensors")


def test_kinds_are_not_confused(integer_file: Path, tmp_path: Path) -> None:
    with pytest.raises(BadModel, match="needs a float one"):
        load_float(integer_file)
    save_float(small_codec("bmshj2018-factorized"), tmp_path / "m.safetensors")
    with pytest.raises(BadModel, match="needs a quantized one"):
        load_integer(tmp_path / "m.safetensors")


def test_not_a_model(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with pytest.raises(UnknownModel):
        load_integer(path)
    for content in (b"no model", b'{"a": 1}', b"\x89PNG\r\n\x1a\n" + bytes(30)):
        path.write_bytes(content)
        with pytest.raises(BadModel, match="x is not a model file, or it is damaged"):
            load_integer(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(BadModel, match="PyTorch checkpoint; `rdquant import`"):
        load_integer(path)
    save_file({"a": np.zeros(1)}, str(path))
    with pytest.raises(BadModel, match="header"):
        load_integer(path)


@pytest.mark.parametrize("version", [3, 6, None, [5], True])
def test_other_versions_are_named(version: Any, integer_file: Path, tmp_path: Path) -> None:
    header, tensors = read(integer_file)
    save_file(tensors, str(tmp_path / "m"), {"rdquant": json.dumps({**header, "version": version})})
    with pytest.raises(BadModel, match="reads 4, 5"):
        load_integer(tmp_path / "m")


def edit(
    source: Path, target: Path, tensors: dict[str, Change | None], at: str = "", change: Any = None
) -> None:
    """``at``: a path into the structure, nodes by their names, of a value to replace."""
    header, data = read(source)
    for name, new in tensors.items():
        if new is None:
            del data[name]
        else:
            data[name] = new(data.get(name))
    if at:
        *path, last = at.split("/")
        place: Any = header["structure"]
        for step in path:
            place = {e["name"]: e for e in place}[step] if isinstance(place, list) else place[step]
        if change is None:
            del place[last]
        else:
            place[last] = change(copy.deepcopy(place.get(last)))
    save_file(data, str(target), {"rdquant": json.dumps(header)})


def put(index: int, value: int) -> Change:
    def change(t: np.ndarray) -> np.ndarray:
        packed = t.dtype == np.uint8 and value < 256
        t = t.astype(np.int64)
        t.reshape(-1)[index] = value
        return t.astype(np.uint8) if packed else t

    return change


def to(value: Any) -> Change:
    return lambda _: value


#: of the handmade "elic": a transposed convolution, one of 4-bit levels, a gate
CONV, LEVELS, GATE = "networks/synthesis/nodes/g_s.11/", "g_s.13", "networks/synthesis/nodes/g_s.20/"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"g_s.11.weight": None}, r"missing 'g_s\.11\.weight'"),
        ({"g_s.11.weight": lambda t: t.astype(np.float32)}, "integers only"),
        ({"g_s.11.weight": lambda t: t[1:]}, "4-byte words"),
        ({"g_s.11.weight": lambda t: t.reshape(2, -1)}, "flat bytes"),
        ({"g_s.11.weight": lambda t: t[:-4]}, "ends too early"),
        ({"g_s.11.rows": lambda t: t[1:]}, "rows must be"),
        ({"g_s.11.rows": lambda t: t.astype(np.int16)}, "rows must be"),
        ({"g_s.11.rows": None}, "bytes, got"),
        ({"g_s.11.taps": None}, "taps"),
        ({"weight_tables.frequencies": put(3, 7)}, "CDF"),
        ({"weight_tables.frequencies": None}, "missing 'weight_tables"),
        ({"weight_tables.offsets": None}, "offsets"),
        ({"g_a.0.bias": put(0, 2**40)}, r"2\^36"),
        ({"y_tables.frequencies": put(3, 7)}, "CDF"),
        ({"y_tables.frequencies": lambda t: t[1:]}, "frequencies"),
        ({"y_tables.cdf": to(np.arange(3))}, "no form"),
        ({"z_tables.starts": put(1, 10**6)}, "starts"),
        ({"thresholds": put(3, 0)}, "thresholds"),
        ({"thresholds": None}, "missing 'thresholds'"),
        ({"medians": put(0, 2**20)}, "medians"),
        ({"medians": lambda t: t[1:]}, "medians"),
        ({"g_a.1.gamma": lambda t: t[1:]}, "bytes, got"),
        ({"g_a.1.factor.shift": put(0, 60)}, "shift"),
        ({"g_a.1.factor.shift": None}, "missing"),
        ({"g_a.1.widen.m": None, "g_a.1.widen.shift": None}, "lacks its factors"),
        ({"g_a.4.negative.m": None}, r"unexpected tensors: g_a\.4\.negative\.shift"),
        ({"g_s.14.feedback": lambda t: t[1:]}, "feedback must be flat"),
        ({"g_s.14.offset": lambda t: np.zeros(2**28, np.int8)}, "feedback must be flat"),
        ({f"{LEVELS}.weight": put(0, 255)}, r"index 15, it has \d+ levels"),
        ({f"{LEVELS}.levels": lambda t: t[::-1].copy()}, "rise strictly"),
        ({f"{LEVELS}.levels": lambda t: t.reshape(-1, 1)}, "bad structure|levels"),
        ({"g_s.4.exponential": put(0, 0)}, "exponentials"),
        ({"g_s.4.exponential": lambda t: t[1:]}, "exponential"),
        ({"g_s.21.values": lambda t: t[:-1]}, "its table has"),
        ({"g_s.21.values": put(0, 2**16)}, "16 bits"),
        ({"g_s.1.sign": put(0, 3)}, "sign"),
        ({"extra": to(np.zeros(1, np.int8))}, "unexpected tensors: extra"),
    ],
)
def test_every_lie_in_a_tensor_is_named(
    tensors: dict[str, Change | None], message: str, integer_file: Path, tmp_path: Path
) -> None:
    edit(integer_file, tmp_path / "bad", tensors)
    with pytest.raises(BadModel, match=message):
        load_integer(tmp_path / "bad")


@pytest.mark.parametrize(
    ("at", "change", "message"),
    [
        ("fraction_bits", to(40), "fraction_bits"),
        ("fraction_bits", to(True), "fraction_bits must be int"),
        ("fraction_bits", to(8.0), "fraction_bits must be int"),
        ("fraction_bits", None, "structure must have"),
        ("extra", to(1), "structure must have"),
        ("architecture", to(3), "architecture must be str"),
        ("prior", to([]), "unknown kind"),
        ("prior/kind", to("other"), "unknown kind 'other'"),
        ("prior/kind", to("factorized"), "prior must have"),
        ("prior/groups", to([2, 2, 3]), "takes Port"),
        ("prior/groups", to([]), "groups"),
        ("prior/groups", to([2, 2, "4"]), "groups must be"),
        ("prior/means", to(1), "means must be bool"),
        ("prior/checkerboard", to(False), "networks must be"),
        ("networks", to({}), "unexpected tensors"),
        ("networks", to(3), "networks must be an object"),
        ("networks/analysis/inputs", to([["x", 3, 0]]), "name, channels, lo, hi"),
        ("networks/analysis/inputs", to([["x", 3, 0, 10**400]]), "must be int"),
        ("networks/analysis/inputs", to([["x", 3, -1, 255]]), "the analysis must take"),
        ("networks/analysis/inputs", to([]), "is not before it"),
        ("networks/analysis/output", to("nothing"), "is no node"),
        ("networks/analysis/nodes", to({}), "lists of inputs and nodes"),
        ("networks/analysis/nodes", to([3]), "unknown kind"),
        ("networks/analysis/nodes", lambda nodes: [*nodes, nodes[0]], r"two nodes are called g_a\.0"),
        (CONV + "kind", to("magic"), "unknown kind 'magic'"),
        (CONV + "kind", to(["convolution"]), "unknown kind"),
        (CONV + "name", to(3), "must be str"),
        (CONV + "inputs", to(["g_s.99"]), r"reads g_s\.99, which is not before it"),
        (CONV + "inputs", to([3]), "must be names"),
        (CONV + "inputs", to([]), "takes 1 inputs"),
        (CONV + "shape", to([8, 8, 5]), "4 axes"),
        (CONV + "shape", to([8, 8, 5, -5]), "4 axes"),
        (CONV + "shape", to([10**6, 10**6, 5, 5]), "over 67108864 weights"),
        (CONV + "bits", to(42), r"2\.\.16"),
        (CONV + "bits", to(0), r"2\.\.16"),
        (CONV + "bits", to(3), r"over \+-3"),
        (CONV + "stride", to(4), "sides"),
        (CONV + "stride", to(1), "sides"),
        (CONV + "stride", to("2"), "stride must be int"),
        (CONV + "transposed", to(0), "transposed must be bool"),
        (CONV + "padding", None, r"g_s\.11 must have"),
        (CONV + "groups", to(3), "groups must divide"),
        (CONV + "groups", to(0), "groups must divide"),
        (CONV + "wings", to(2), r"g_s\.11 must have"),
        (GATE + "inputs", lambda edges: edges[:1], "takes 2 inputs"),
        (GATE + "lo", to(5), "lo <= 0 <= hi"),
        ("networks/synthesis/nodes/g_s.18/stop", to(80), "channels 4"),
        ("networks/synthesis/nodes/g_s.4/window", to(5), "bias must be"),
        ("networks/synthesis/nodes/g_s.4/heads", to(5), "heads|bias|logit"),
        ("networks/synthesis/nodes/g_s.5/signs", to([1, -1, 1]), "signs"),
        ("networks/synthesis/nodes/g_s.20/function", to("x"), "must have"),
        ("networks/synthesis/nodes/g_s.21/function", to("sine"), "unknown function"),
        ("networks/analysis/nodes/g_a.2/factor", to(1), "channels|takes"),
        ("networks/analysis/nodes/g_a.2/factor", to(100), "unshuffled|takes"),
    ],
)
def test_every_lie_in_the_structure_is_named(
    at: str, change: Any, message: str, integer_file: Path, tmp_path: Path
) -> None:
    edit(integer_file, tmp_path / "bad", {}, at, change)
    with pytest.raises(BadModel, match=message):
        load_integer(tmp_path / "bad")


def test_lies_about_resolutions_are_named(integer_file: Path, tmp_path: Path) -> None:
    """A stride or a shuffle that would give other sides than the rest of the codec takes."""
    for name, network in read(integer_file)[0]["structure"]["networks"].items():
        for node in network["nodes"]:
            at = f"networks/{name}/nodes/{node['name']}"
            for field, value in (("stride", 1), ("stride", 3), ("factor", 1), ("factor", 4)):
                if node.get(field, value) == value:
                    continue
                edit(integer_file, tmp_path / "bad", {}, f"{at}/{field}", to(value))
                with pytest.raises(BadModel):
                    load_integer(tmp_path / "bad")


@pytest.mark.parametrize("kind", ["serial", "checkerboard"])
def test_contexts_that_see_too_much_are_named(kind: str, pixels: np.ndarray) -> None:
    """An encoder would see what no decoder can."""
    codec = handmade.codec(kind, pixels)
    name = "context" if kind == "serial" else "parameters_0"
    graph = codec.networks[name]
    convolution = next(n for n in graph.nodes if isinstance(n.op, Convolution))
    size = 5 if kind == "serial" else 3
    weight = np.ones((*convolution.op.weight.shape[:2], size, size), np.int16)
    wide = dataclasses.replace(convolution.op, weight=weight, padding=size // 2)
    networks = {**codec.networks, name: graph.replaced({convolution.name: wide})}
    with pytest.raises(BadModel, match=r"masked from its centre|1x1 convolutions"):
        dataclasses.replace(codec, networks=networks).check()


def test_contexts_with_a_way_around_the_mask_are_named(pixels: np.ndarray) -> None:
    codec = handmade.codec("serial", pixels)
    graph = codec.networks["context"]
    channels = graph.channels()[graph.output]
    given, port = next(iter(graph.inputs.items()))
    weight = np.ones((channels, port.channels, 1, 1), np.int16)
    beside = Convolution(weight, np.zeros(channels, np.int64), bits=8)
    nodes = (
        *graph.nodes,
        Node("beside", beside, (given,)),
        Node("own", Requantize(Multiplier.from_float(np.full(channels, 0.01)), None, -99, 99), ("beside",)),
        Node("both", Concatenate(), (graph.output, "own")),
        Node("half", Slice(0, channels), ("both",)),
    )
    around = dataclasses.replace(graph, nodes=nodes, output="half")
    with pytest.raises(BadModel, match="which all goes through"):
        dataclasses.replace(codec, networks={**codec.networks, "context": around}).check()


def test_damaged_gzip_is_named(integer_file: Path, tmp_path: Path) -> None:
    data, bad = integer_file.read_bytes(), tmp_path / "bad.rdqm"
    bomb = gzip.compress(bytes(2**28 + 1), 1)
    for content, message in (
        (data[:-1], "ends too early"),
        (data[:100] + b"\xff" + data[101:], "damaged"),
        (data[:-5] + bytes(5), "damaged gzip"),
        (data + b"x", "1 byte"),
        (bomb, "more than 268435456"),
    ):
        bad.write_bytes(content)
        with pytest.raises(BadModel, match=message):
            load_integer(bad)


def test_fingerprint_sees_every_integer(integer_file: Path, tmp_path: Path) -> None:
    original = integer_fingerprint(load_integer(integer_file))
    found = {original}
    for name in ("g_a.0.bias", "g_a.1.gamma", "medians", "g_s.4.exponential", "g_s.21.values", "g_s.5.m"):
        tensor = read(integer_file)[1][name]
        edit(integer_file, tmp_path / "m", {name: put(-1, int(tensor.reshape(-1)[-1]) ^ 1)})
        found.add(integer_fingerprint(load_integer(tmp_path / "m")))
    edit(integer_file, tmp_path / "m", {}, GATE + "hi", to(126))
    found.add(integer_fingerprint(load_integer(tmp_path / "m")))
    assert len(found) == 8
