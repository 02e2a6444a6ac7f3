"""Capture: graphs compute what modules do, whoever's they are; what is no operation is refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressai_models import MODELS, compressai_model
from conftest import small_codec
from rdquant.codec import Codec
from rdquant.codecs import ARCHITECTURES
from rdquant.codecs.bottleneck import EntropyBottleneck
from rdquant.errors import BadModel, CaptureError
from rdquant.graph.capture import capture
from rdquant.graph.operations import Convolution, DivisiveNormalization, Pointwise, Slice, Sum
from rdquant.passes.flow import noting
from rdquant.priors import ChannelGroups, Factorized, Hyperprior, Prior, Serial

M = 6


class Own:
    """A codec of no class of ours: an analysis and a synthesis of 4x the resolution, y factorized."""

    architecture = "own"
    prior: Prior = Factorized()

    def __init__(self, middle: nn.Module | None = None) -> None:
        torch.manual_seed(0)
        self.down = nn.Sequential(nn.Conv2d(3, M, 5, 4, 2), middle or nn.ReLU())
        self.up = nn.Sequential(nn.Conv2d(M, 48, 1), nn.PixelShuffle(4))
        self.entropy_bottleneck = EntropyBottleneck(M)

    def analysis(self, x: Tensor) -> Tensor:
        return self.down(x)

    def synthesis(self, y_hat: Tensor) -> Tensor:
        return self.up(y_hat)


def of(function: Any) -> Codec:
    """A codec with ``function`` of six channels in the middle of its analysis."""

    class Middle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.rand(M, 1, 1))
            self.inner = nn.Conv2d(M, M, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return function(self, x)

    return capture(Own(Middle()))


def operations(codec: Codec, network: str = "analysis") -> list[tuple[str, str]]:
    return [(n.name, n.op.kind) for n in codec.networks[network].nodes]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_graphs_are_the_modules(architecture: str) -> None:
    """Also of other sizes than capture itself compares; and training the modules further moves nothing."""
    codec = small_codec(architecture)
    captured = capture(codec)
    assert set(captured.networks) == {"analysis", "synthesis", *codec.prior.networks}
    assert (captured.M, captured.downsampling) == (codec.M, codec.downsampling) and not captured.integer
    x = torch.rand(2, 3, 128, 64)
    y = codec.analysis(x)
    torch.testing.assert_close(captured.networks["analysis"].real(x), y)
    torch.testing.assert_close(captured.networks["synthesis"].real(y), codec.synthesis(y))
    if codec.prior.hyper:
        features = codec.hyper_synthesis(codec.hyper_analysis(y))
        run = noting(captured, None)
        z = run("hyper_analysis", y)
        torch.testing.assert_close(run("hyper_synthesis", z), features)
        found = captured.run("hyper_synthesis", captured.run("hyper_analysis", y.numpy()))
        torch.testing.assert_close(torch.from_numpy(found), features)
        pair = [codec.prior.all_parameters(r, features, y) for r in (codec.run, run)]
        for ours, theirs in zip(*pair, strict=True):
            assert (ours is None) == (theirs is None)
            if ours is not None:
                torch.testing.assert_close(ours, theirs)
    names = [node.name for graph in captured.networks.values() for node in graph.nodes]
    assert len(set(names)) == len(names)
    before = captured.networks["analysis"].real(x)
    for p in codec.g_a.parameters():
        p.zero_()
    torch.testing.assert_close(captured.networks["analysis"].real(x), before)


def test_names_are_paths() -> None:
    captured = capture(small_codec("cheng2020-anchor"))
    names = [node.name for node in captured.networks["analysis"].nodes]
    first, second = ("conv1", "leaky_relu", "conv2", "gdn", "skip", "add"), ("conv1", "leaky_relu", "conv2")
    assert names[:6] == [f"g_a.0.{name}" for name in first]
    assert names[6:11] == [f"g_a.1.{name}" for name in (*second, "leaky_relu_2", "add")]
    assert captured.networks["parameters"].inputs.keys() == {"hyper_synthesis", "context"}
    magnitudes = capture(small_codec("bmshj2018-hyperprior")).networks["hyper_analysis"].nodes[0]
    assert magnitudes.name == "hyper_analysis.abs"


def test_the_same_module_in_two_networks() -> None:
    own = Own()
    own.down = own.up = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1))
    own.entropy_bottleneck = EntropyBottleneck(3)
    found = capture(own)
    assert operations(found) == [("down.0", "convolution")]
    assert operations(found, "synthesis") == [("synthesis.down.0", "convolution")]


@pytest.mark.parametrize("architecture", MODELS)
@torch.no_grad()
def test_compressais_own_modules(architecture: str) -> None:
    """Its models can be wrapped as they are: GDN, masked convolutions, attention, sub-pixel convolutions."""
    model = compressai_model(architecture)
    own = Wrapped(model, architecture)
    captured = capture(own)
    x = torch.rand(1, 3, 64, 128)
    torch.testing.assert_close(captured.networks["analysis"].real(x), model.g_a(x), rtol=1e-4, atol=1e-4)
    y = model.g_a(x)
    torch.testing.assert_close(captured.networks["synthesis"].real(y), model.g_s(y), rtol=1e-4, atol=1e-4)
    if architecture == "mbt2018":
        context = model.context_prediction(y)
        found = torch.from_numpy(captured.run("context", y.numpy()))
        torch.testing.assert_close(found, context, rtol=1e-4, atol=1e-4)
    medians = getattr(model, "entropy_bottleneck", None) or model.latent_codec.hyper.entropy_bottleneck
    assert np.array_equal(captured.medians, medians._get_medians().reshape(-1).numpy())


class Wrapped:
    """What somebody writes for a codec of CompressAI."""

    def __init__(self, model: Any, architecture: str) -> None:
        self.model, self.architecture = model, architecture
        if hasattr(model, "latent_codec"):
            groups = tuple(model.groups)
            self.prior: Prior = ChannelGroups(groups)
            latent, hyper = model.latent_codec.y, model.latent_codec.hyper
            self.entropy_bottleneck, self.hyper_analysis, self.hyper_synthesis = (
                hyper.entropy_bottleneck, hyper.h_a, hyper.h_s
            )  # fmt: skip
            for g in range(len(groups)):
                part = latent.latent_codec[f"y{g}"]
                setattr(self, f"spatial_context_{g}", part.context_prediction)
                setattr(self, f"parameters_{g}", self.joined(part.entropy_parameters))
                if g:
                    setattr(self, f"channel_context_{g}", self.seen(latent, g))
            return
        self.entropy_bottleneck = model.entropy_bottleneck
        if not hasattr(model, "h_s"):
            self.prior = Factorized()
            return
        means = architecture != "bmshj2018-hyperprior"
        self.prior = Serial() if hasattr(model, "context_prediction") else Hyperprior(means)
        self.hyper_synthesis = model.h_s
        self.hyper_analysis = model.h_a if means else lambda y: model.h_a(torch.abs(y))
        if isinstance(self.prior, Serial):
            self.context = model.context_prediction
            self.entropy_parameters = self.joined(model.entropy_parameters)

    def joined(self, network: nn.Module) -> Any:
        return lambda *tensors: network(torch.cat(tensors, 1))

    def seen(self, latent: Any, g: int) -> Any:
        """What CompressAI gives a group of the groups before, by whichever rule the model has."""
        before = latent.groups[:g]
        return lambda y_hat: latent.channel_context[f"y{g}"](latent.merge_y(*torch.split(y_hat, before, 1)))

    def analysis(self, x: Tensor) -> Tensor:
        return self.model.g_a(x)

    def synthesis(self, y_hat: Tensor) -> Tensor:
        return self.model.g_s(y_hat)


@pytest.mark.parametrize(
    ("function", "kinds"),
    [
        (lambda m, x: x + m.inner(x), ["convolution", "sum"]),
        (lambda m, x: x - m.inner(x), ["convolution", "sum"]),
        (lambda m, x: x.mul_(torch.sigmoid(m.inner(x))), ["convolution", "table", "product"]),
        (lambda m, x: torch.cat(x.chunk(2, 1)[::-1], dim=1), ["slice", "slice", "concatenate"]),
        (lambda m, x: torch.cat((x[:, 4:], x[:, :4]), 1), ["slice", "slice", "concatenate"]),
        (lambda m, x: torch.cat([torch.split(x, [1, 4, 1], 1)[2] + x[:, 3:4]] * M, 1), None),
        (lambda m, x: F.leaky_relu(F.gelu(F.silu(x)), 0.2).clamp(-1, 1).tanh().abs(), ["table"] * 6),
        (lambda m, x: torch.clamp(x, min=0), ["table"]),
        (lambda m, x: F.pixel_unshuffle(F.pixel_shuffle(torch.cat([x, x], 1)[:, :8], 2), 2)[:, :6], None),
        (lambda m, x: 1 - x, ["convolution"]),
        (lambda m, x: -x / 3 + 2, ["convolution"] * 3),
        (lambda m, x: x * m.gain, ["convolution"]),
        (lambda m, x: (x * torch.full((1, M, 1, 1), 2.0)).contiguous(), ["convolution"]),
        (lambda m, x: x * x, ["product"]),
    ],
)
def test_functions(function: Any, kinds: list[str] | None) -> None:
    """Capture itself compares the graph with the modules."""
    found = [kind for _, kind in operations(of(function))[1:]]
    assert kinds is None or found == kinds


@pytest.mark.parametrize(
    "module",
    [
        nn.GELU(), nn.SiLU(), nn.Sigmoid(), nn.Tanh(), nn.ReLU6(), nn.Hardtanh(-2, 1), nn.LeakyReLU(0.2),
        nn.Sequential(nn.Identity(), nn.Dropout(0.0)), nn.Conv2d(M, M, 3, padding="same"),
        nn.Conv2d(M, M, 3, padding=1, groups=3, bias=False), nn.Conv2d(M, 2 * M, 1, stride=2),
        nn.ConvTranspose2d(M, M, 4, 2, 1), nn.ConvTranspose2d(M, M, 2, 2, groups=2), nn.PixelUnshuffle(2),
        nn.PixelShuffle(1),
    ],
)  # fmt: skip
def test_modules(module: nn.Module) -> None:
    own = Own(module)
    up, channels = 4, M
    with torch.no_grad():
        y = own.analysis(torch.zeros(1, 3, 64, 64))
        up, channels = 64 // y.shape[2], y.shape[1]
    own.up = nn.Sequential(nn.Conv2d(channels, 3 * up**2, 1), nn.PixelShuffle(up))
    own.entropy_bottleneck = EntropyBottleneck(channels)
    found = capture(own)
    assert found.stride == up and channels == found.M


def test_a_chain_is_what_it_says() -> None:
    found = capture(small_codec("bmshj2018-factorized")).networks["analysis"]
    assert [type(n.op) for n in found.nodes] == [Convolution, DivisiveNormalization] * 3 + [Convolution]
    residual = of(lambda m, x: x + m.inner(x)).networks["analysis"].nodes[-1]
    assert residual.op == Sum((1, 1)) and residual.inputs == ("down.0", "down.1.inner")
    piece = of(lambda m, x: torch.cat((x[:, 4:], x[:, :4]), 1)).networks["analysis"].nodes[1]
    assert piece.op == Slice(4, 6)
    leaky = of(lambda m, x: F.leaky_relu(x, negative_slope=0.3)).networks["analysis"].nodes[1]
    assert leaky.op == Pointwise("leaky_relu", (0.3,)) and leaky.name == "down.1.leaky_relu"


class Odd(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cumsum(x, 1)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Moody(nn.Module):
    """No pure function of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Odd(), r"down\.1 \(Odd\) calls cumsum"),
        (nn.Sequential(nn.ReLU(), nn.Sequential(Odd())), r"down\.1\.1\.0 \(Odd\) calls cumsum"),
        (Branching(), r"down\.1 cannot be traced: symbolically traced variables cannot be used"),
        (Moody(), "network analysis differs from its graph"),
        (nn.BatchNorm2d(M), r"down\.1 \(BatchNorm2d\) is no operation"),
        (nn.AvgPool2d(2), r"down\.1 \(AvgPool2d\)"),
        (nn.Softmax(1), r"down\.1 \(Softmax\)"),
        (nn.GELU("tanh"), r"down\.1 \(GELU\): GELU approximated by 'tanh'"),
        (nn.Conv2d(M, M, 3), r"down\.1 \(Conv2d\): .*1 <= k - 2 p <= s"),
        (nn.Conv2d(M, M, 3, padding=2, dilation=2), r"down\.1 \(Conv2d\): .*dilation"),
        (nn.Conv2d(M, M, (1, 3), padding=(0, 1)), r"down\.1 \(Conv2d\): .*square"),
        (nn.Conv2d(M, M, 3, padding=1, padding_mode="reflect"), r"down\.1 \(Conv2d\)"),
        (nn.ConvTranspose2d(M, M, 5, 2, 2), r"down\.1 \(ConvTranspose2d\): output_padding must be 1"),
    ],
)
def test_what_is_no_operation_is_named(module: nn.Module, message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        capture(Own(module))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda m, x: x[:, :, 1:], "only channels can be sliced"),
        (lambda m, x: x[:, ::2], "by steps of 1, not 2"),
        (lambda m, x: torch.cat([x, x], 2), "not dim 2"),
        (lambda m, x: 1 / x, "divides by a tensor"),
        (lambda m, x: x * torch.rand(1, 1, 4, 4), r"constant of shape \(1, 1, 4, 4\)"),
        (lambda m, x: x + m.inner(x)[:, :1], r"sum of \[6, 1\] channels"),
        (lambda m, x: F.gelu(x, approximate="tanh"), "approximate"),
        (lambda m, x: x.permute(0, 2, 3, 1), "calls permute"),
        (lambda m, x: x.reshape(x.shape[0], -1), "calls getattr"),
        (lambda m, x: (x, x), "must give one tensor"),
    ],
)
def test_functions_that_are_none_are_named(function: Any, message: str) -> None:
    with pytest.raises(CaptureError, match=message) as caught:
        of(function)
    assert "down.1 (Middle)" in str(caught.value) or "analysis" in str(caught.value)


def test_a_module_out_of_sight_and_one_out_of_use() -> None:
    own = Own()
    hidden = [nn.Conv2d(M, M, 1)]
    own.analysis = lambda x: hidden[0](own.down(x))  # type: ignore[method-assign]
    with pytest.raises(CaptureError, match="analysis cannot be traced: module is not installed"):
        capture(own)
    own = Own()
    own.unused = nn.Conv2d(M, M, 3)  # type: ignore[attr-defined]
    capture(own)


def test_members_that_lack() -> None:
    own = Own()
    own.prior = Hyperprior()
    with pytest.raises(BadModel, match="'own' has no network 'hyper_analysis'"):
        capture(own)
    own = Own()
    own.entropy_bottleneck = nn.Identity()  # type: ignore[assignment]
    with pytest.raises(BadModel, match="a Identity, has no medians"):
        capture(own)
