from __future__ import annotations

import pytest
import torch

from conftest import small_codec
from rdquant.codecs import ARCHITECTURES, build
from rdquant.codecs.base import switched
from rdquant.codecs.bottleneck import EntropyBottleneck, gaussian_likelihood
from rdquant.codecs.layers import GDN, lower_bound
from rdquant.errors import UsageError


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_forward_shapes_and_modes(architecture: str) -> None:
    codec = build(architecture, 8, 12)
    x = torch.rand(2, 3, 64, 128)
    for mode in ("noise", "mixed", "round", *(["switching"] if codec.has_hyperprior else [])):
        out = codec(x, mode)
        assert out.x_hat.shape == x.shape
        assert set(out.likelihoods) == ({"y", "z"} if codec.has_hyperprior else {"y"})
        assert out.bits() > 0
        out.bits().backward()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rounded_forward_is_repeatable(architecture: str) -> None:
    codec = small_codec(architecture)
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(codec(x, "round").x_hat, codec(x, "round").x_hat)


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
