from __future__ import annotations

import pytest
import torch

from conftest import small_codec
from rdquant.codecs import ARCHITECTURES, build
from rdquant.codecs.base import switched
from rdquant.codecs.bottleneck import EntropyBottleneck, gaussian_likelihood
from rdquant.codecs.layers import GDN, MaskedConv2d, lower_bound
from rdquant.errors import UsageError
from rdquant.graph.capture import capture
from rdquant.latents.parts import quantized


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_forward_shapes_and_modes(architecture: str) -> None:
    codec = small_codec(architecture).train()
    x = torch.rand(2, 3, 64, 128)
    for mode in ("noise", "mixed", "round", *(["switching"] if codec.prior.hyper else [])):
        out = codec(x, mode)
        assert out.x_hat.shape == x.shape
        assert set(out.likelihoods) == ({"y", "z"} if codec.prior.hyper else {"y"})
        assert bool((out.bits() > 0).all())
        codec.zero_grad()
        (out.bits().sum() + out.x_hat.sum()).backward()
        without = [n for n, p in codec.named_parameters() if p.grad is None and not n.endswith("quantiles")]
        assert not without, f"{mode}: no gradient of {without}"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_round_is_what_a_file_holds(architecture: str) -> None:
    """Its pictures are those of the captured codec's coding loop."""
    codec = small_codec(architecture)
    x = torch.rand(2, 3, 64, 128, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        out = codec(x, "round")
        assert torch.equal(out.x_hat, codec(x, "round").x_hat)
        y_hat = torch.from_numpy(quantized(capture(codec), x.numpy()).y_hat)
        torch.testing.assert_close(out.x_hat, codec.synthesis(y_hat), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("architecture", ["mbt2018", "elic2022-chandelier"])
def test_contexts_of_training_are_nearly_those_of_coding(architecture: str) -> None:
    """Straight-through rounding costs about what true rounding does, whose contexts are known one by one."""
    codec = small_codec(architecture)
    x = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        mixed, true = (float(codec(x, mode).bits().sum()) for mode in ("mixed", "round"))
    assert mixed == pytest.approx(true, rel=0.1)


def test_masks_are_those_of_their_order() -> None:
    causal, board = MaskedConv2d(1, 1).mask[0, 0], MaskedConv2d(1, 1, checkerboard=True).mask[0, 0]
    assert causal.flatten().tolist() == [1.0] * 12 + [0.0] * 13
    assert all(board[r, c] == (r + c) % 2 for r in range(5) for c in range(5))


def test_switched_values_are_those_of_one_quantizer_or_the_other() -> None:
    """By definition: the nearest even multiple, or the nearest of the odd ones and zero."""
    torch.manual_seed(0)
    v = torch.linspace(-6, 6, 4001, requires_grad=True)
    even, odd = torch.arange(-8.0, 9, 2), torch.tensor([0.0, *range(-7, 8, 2)])
    nearest = torch.stack([(v.detach()[:, None] - lattice).abs().amin(1) for lattice in (even, odd)])
    out = switched(v)
    error = (out - v).detach().abs()
    hits = [torch.isclose(error, n, atol=1e-5) & torch.isin(out.detach().round(), lattice)
            for n, lattice in zip(nearest, (even, odd), strict=True)]  # fmt: skip
    assert bool((hits[0] | hits[1]).all())
    assert all(0.4 < float((hit & ~other).float().mean()) < 0.55 for hit, other in (hits, hits[::-1]))
    out.sum().backward()
    assert v.grad is not None and bool((v.grad == 1).all())


def test_unknown_architecture_and_width() -> None:
    with pytest.raises(UsageError, match="cheng2020"):
        build("cheng2020", 8, 8)
    with pytest.raises(UsageError, match="0"):
        build("mbt2018-mean", 0, 8)
    with pytest.raises(UsageError, match="has the options N, M, groups, got"):
        build("elic2022-official", N=8, M=8, heads=2)
    with pytest.raises(UsageError, match=r"sum to M = 9, got \[4, 4\]"):
        build("elic2022-official", N=8, M=9, groups=[4, 4])
    with pytest.raises(UsageError, match="heads must divide N = 8, got 3"):
        build("window-attention", N=8, M=9, heads=3)
    with pytest.raises(UsageError, match=r"groups must be 1\.\.4096, got 'four'"):
        build("elic2022-official", N=8, M=9, groups=["four"])
    with pytest.raises(UsageError, match=r"mbt2018: .*missing"):
        build("mbt2018", N=8)


def test_gdn_is_its_formula() -> None:
    g = GDN(4)
    with torch.no_grad():
        g.gamma.copy_(torch.rand(4, 4))
    beta, gamma = g.effective()
    x = torch.randn(1, 4, 2, 2)
    expected = x / torch.sqrt(torch.einsum("ij,bjhw->bihw", gamma, x**2) + beta.reshape(1, -1, 1, 1))
    torch.testing.assert_close(g(x), expected)
    inverse = GDN(4, inverse=True)
    inverse.load_state_dict(g.state_dict())
    torch.testing.assert_close(inverse(x), x**2 / expected)


def test_lower_bound_lets_gradients_pull_back_inside() -> None:
    x = torch.tensor([0.0, 0.0, 2.0], requires_grad=True)
    (lower_bound(x, 1.0) * torch.tensor([1.0, -1.0, 1.0])).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0, -1, 1]


def test_gaussian_likelihood_sums_to_one() -> None:
    k = torch.arange(-200, 201).reshape(1, 1, 1, -1).float()
    for scale in (0.11, 1.0, 20.0):
        assert float(gaussian_likelihood(k, torch.full_like(k, scale)).sum()) == pytest.approx(1, abs=1e-4)


def test_bottleneck_pmfs_sum_to_one_and_centre_on_the_median() -> None:
    torch.manual_seed(0)
    bottleneck = EntropyBottleneck(5)
    pmfs, first, outside = bottleneck.pmfs()
    for p, f, o in zip(pmfs, first, outside, strict=True):
        assert p.sum() + o == pytest.approx(1, abs=1e-6) and f < 0 < f + len(p)
    bottleneck.solve_quantiles()
    assert bottleneck.auxiliary_loss().item() < 1e-2
