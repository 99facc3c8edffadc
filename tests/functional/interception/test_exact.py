"""Losses and distances where torch has no second derivative: torch's values, at the edges too."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn import functionalize
from metalearn.functional.interception import distances, fractional_pools, losses
from tests.functional.interception.cases import Method

D = torch.float64
CTC = losses.REPLACEMENTS[F.ctc_loss]
CDIST = distances.REPLACEMENTS[torch.cdist]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=D)


CTC_CASES = {
    "padded targets": (torch.tensor([[1, 2, 3], [3, 3, 0]]), [7, 6], [3, 2]),
    "a label twice in a row": (torch.tensor([[1, 1, 1], [2, 2, 1]]), [7, 7], [3, 3]),
    "targets one after another": (torch.tensor([1, 2, 3, 3]), [7, 5], [3, 1]),
    "tensors of lengths": (torch.tensor([[1, 2], [3, 1]]), torch.tensor([7, 4]), torch.tensor([2, 1])),
    "an empty target": (torch.tensor([[1, 2], [3, 1]]), [7, 4], [2, 0]),
    "too short to be aligned": (torch.tensor([[1, 2, 1], [3, 3, 3]]), [7, 4], [3, 3]),
}


@pytest.mark.parametrize("zero_infinity", [False, True])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("name", CTC_CASES)
def test_ctc_equals_torchs(name: str, reduction: str, zero_infinity: bool) -> None:
    targets, *lengths = CTC_CASES[name]
    scores = draw(7, 2, 4).requires_grad_()
    arguments = (scores.log_softmax(-1), targets, *lengths)
    expected = F.ctc_loss(*arguments, reduction=reduction, zero_infinity=zero_infinity)
    got = CTC(None, *arguments, reduction=reduction, zero_infinity=zero_infinity)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    if got.isfinite().all():
        (first,) = torch.autograd.grad(expected.sum(), scores, retain_graph=True)
        (own,) = torch.autograd.grad(got.sum(), scores)
        torch.testing.assert_close(own, first, rtol=1e-10, atol=1e-12)
    else:
        assert name == "too short to be aligned"
        assert not zero_infinity


def test_ctc_of_one_example_and_another_blank() -> None:
    scores = draw(5, 3).log_softmax(-1)
    arguments = (scores, torch.tensor([0, 1]), torch.tensor(5), torch.tensor(2))
    for reduction in ("none", "mean"):
        expected = F.ctc_loss(*arguments, blank=2, reduction=reduction)
        torch.testing.assert_close(CTC(None, *arguments, 2, reduction), expected, rtol=1e-12, atol=1e-12)


def test_ctc_has_second_derivatives() -> None:
    targets, *lengths = CTC_CASES["a label twice in a row"]
    scores = draw(7, 2, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: CTC(None, x, targets, *lengths), scores)  # of unnormalised ones too
    assert torch.autograd.gradgradcheck(lambda x: CTC(None, x.log_softmax(-1), targets, *lengths), scores)


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, math.inf])
def test_distances_equal_torchs(p: float) -> None:
    a, b = draw(2, 30, 3).requires_grad_(), draw(2, 4, 3, seed=1)
    exact = "donot_use_mm_for_euclid_dist"
    expected, got = torch.cdist(a, b, p, exact), CDIST(None, a, b, p, exact)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    if p > 0:
        (first,), (own,) = (torch.autograd.grad(each.sin().sum(), a) for each in (expected, got))
        torch.testing.assert_close(own, first, rtol=1e-10, atol=1e-12)
    pairs = a.detach()[0]
    own_pairs = distances.REPLACEMENTS[F.pdist](None, pairs, p)
    torch.testing.assert_close(own_pairs, F.pdist(pairs, p), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("p", [0.5, 1.0, 1.5, 2.0, 3.0, math.inf])
def test_a_distance_of_zero_has_finite_derivatives(p: float) -> None:
    a = draw(4, 3).requires_grad_()
    (first,) = torch.autograd.grad(CDIST(None, a, a, p).sin().sum(), a, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), a)
    assert first.isfinite().all()
    assert second.isfinite().all()
    assert second.abs().sum() > 0 or p in (1.0, math.inf)


def test_distances_by_products_where_asked_for() -> None:
    a, b = draw(6, 3) + 1e3, draw(5, 3, seed=1) + 1e3
    by_products = CDIST(None, a, b, 2.0, "use_mm_for_euclid_dist")
    torch.testing.assert_close(by_products, CDIST(None, a, b), rtol=1e-10, atol=0)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_margin_losses_equal_torchs(reduction: str) -> None:
    x, classes = draw(5, 4), torch.tensor([0, 3, 2, 2, 1])
    labels = torch.tensor([[3, 0, -1, 1], [-1, 2, 2, 2], [0, 1, 2, 3], [2, 2, -1, 0], [1, -1, -1, -1]])
    weight = torch.rand(4, dtype=D)
    for own, arguments, options in (
        (F.multi_margin_loss, (x, classes), {"p": 2, "margin": 0.3, "weight": weight}),
        (F.multi_margin_loss, (x, classes), {}),
        (F.multi_margin_loss, (x[0], classes[:1]), {}),
        (F.multi_margin_loss, (x[0], classes[0]), {}),
        (F.multilabel_margin_loss, (x, labels), {}),
        (F.multilabel_margin_loss, (x[0], labels[0]), {}),
        (F.soft_margin_loss, (40 * x, x.sign()), {}),
        (F.gaussian_nll_loss, (x, -x, x.abs()[:, :1] * 1e-6), {"full": True}),
        (F.gaussian_nll_loss, (x, -x, x.abs()[:, 0]), {}),
        (F.gaussian_nll_loss, (x, -x, 0.3), {}),
    ):
        got = losses.REPLACEMENTS[own](None, *arguments, reduction=reduction, **options)
        torch.testing.assert_close(got, own(*arguments, reduction=reduction, **options), rtol=1e-12, atol=1e-12)


def test_a_negative_variance_is_not_passed_over() -> None:
    loss = losses.REPLACEMENTS[F.gaussian_nll_loss]
    x = draw(3, 2)
    with pytest.raises(ValueError, match="negative"):
        loss(None, x, x, -x.abs())
    assert torch.vmap(lambda x: loss(None, x, x, -x.abs()))(x).isnan().all()


@pytest.mark.parametrize(("dims", "sizes"), [(2, (9, 11)), (3, (8, 9, 7))])
def test_fractional_pools_equal_torchs_for_the_same_samples(dims: int, sizes: tuple[int, ...]) -> None:
    function = getattr(F, f"fractional_max_pool{dims}d_with_indices")
    samples = torch.rand(3, 2, dims, dtype=D)
    for kernel, count in ((2, 1), (2, 5), (3, 4)):
        expected = function(draw(3, 2, *sizes), kernel, count, _random_samples=samples)
        got = fractional_pools.REPLACEMENTS[function](None, draw(3, 2, *sizes), kernel, count, _random_samples=samples)
        assert all(map(torch.equal, got, expected))


def test_predictions_of_an_adaptive_softmax_under_vmap() -> None:
    torch.manual_seed(0)
    model = functionalize(Method(nn.AdaptiveLogSoftmaxWithLoss(64, 10, [3, 6], dtype=D), "predict"))
    x = 3 * draw(5, 8, 64)
    looped = torch.stack([model(model.params, model.buffers, row)[0] for row in x])
    assert torch.equal(torch.vmap(lambda row: model(model.params, model.buffers, row)[0])(x), looped)
    assert looped.unique().numel() > 3
