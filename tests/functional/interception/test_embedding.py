"""Embeddings in a bag and alone: torch's values, and gradients that are the derivatives of their values."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn import UsageError, functionalize
from metalearn.functional.interception import embedding

D = torch.float64
BAG = embedding.REPLACEMENTS[F.embedding_bag]
LOOK_UP = embedding.REPLACEMENTS[F.embedding]


def table() -> Tensor:
    return torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=D)


FLAT = torch.tensor([1, 2, 2, 5, 2, 6, 0, 1])
OFFSETS = {
    "plain": torch.tensor([0, 3, 5]),
    "an empty first bag": torch.tensor([0, 0, 5]),
    "empty bags in the middle and at the end": torch.tensor([0, 2, 2, 2, 6, 8]),
    "all empty but one": torch.tensor([0, 8, 8]),
}
EVERY = [(mode, offsets, last) for mode in ("sum", "mean", "max") for offsets in OFFSETS for last in (False, True)]


@pytest.mark.parametrize("padding", [None, 2, -2])
@pytest.mark.parametrize(("mode", "offsets", "last"), EVERY)
def test_bags_equal_torchs(mode: str, offsets: str, last: bool, padding: int | None) -> None:
    starts = torch.cat([OFFSETS[offsets], torch.tensor([8])]) if last else OFFSETS[offsets]
    options = {"mode": mode, "include_last_offset": last, "padding_idx": padding}
    weight, own = table().requires_grad_(), table().requires_grad_()
    expected = F.embedding_bag(FLAT, weight, starts, **options)
    got = BAG(None, FLAT, own, starts, **options)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    (first,) = torch.autograd.grad(expected.sin().sum(), weight)
    (own_first,) = torch.autograd.grad(got.sin().sum(), own, create_graph=True)
    torch.testing.assert_close(own_first, first, rtol=1e-10, atol=1e-12)
    assert torch.autograd.gradgradcheck(lambda w: BAG(None, FLAT, w, starts, **options).sin(), (own,))


def test_per_sample_weights_have_derivatives() -> None:
    x, weight = FLAT.reshape(4, 2), table().requires_grad_()
    shares = torch.rand(4, 2, generator=torch.Generator().manual_seed(1), dtype=D, requires_grad=True)
    expected = F.embedding_bag(x, weight, mode="sum", per_sample_weights=shares, padding_idx=2)
    got = BAG(None, x, weight, mode="sum", per_sample_weights=shares, padding_idx=2)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradgradcheck(
        lambda w, s: BAG(None, x, w, mode="sum", per_sample_weights=s, padding_idx=2).sin(), (weight, shares)
    )


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0])
def test_max_norm_projects_without_changing_the_parameter(norm_type: float) -> None:
    module = nn.Embedding(7, 3, max_norm=1.0, norm_type=norm_type, dtype=D)
    model = functionalize(module)
    before = model.params["weight"].clone()
    output, _ = model(model.params, model.buffers, FLAT)
    assert torch.equal(model.params["weight"], before)
    assert not torch.equal(before[FLAT], output)  # some rows are too long
    torch.testing.assert_close(output, module(FLAT), rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(lambda w: LOOK_UP(None, FLAT, w, None, 1.0, norm_type), table().requires_grad_())
    assert torch.autograd.gradgradcheck(
        lambda w: LOOK_UP(None, FLAT, w, None, 1.0, norm_type), table().requires_grad_()
    )


def test_a_row_of_zeros_is_projected_to_itself() -> None:
    zero = torch.zeros(2, 3, dtype=D, requires_grad=True)
    output = LOOK_UP(None, torch.tensor([0, 1]), zero, None, 1.0)
    (first,) = torch.autograd.grad(output.sum(), zero, create_graph=True)
    assert torch.equal(output, zero)
    assert torch.equal(first, torch.ones_like(zero))


def test_sparse_gradients_are_dense() -> None:
    model = functionalize(nn.Embedding(7, 3, sparse=True, dtype=D))
    gradient = torch.func.grad(lambda params: model(params, model.buffers, FLAT)[0].sum())(model.params)["weight"]
    assert not gradient.is_sparse
    assert torch.equal(gradient[:, 0], torch.bincount(FLAT, minlength=7).to(D))


@pytest.mark.parametrize("bad", [7, -1])
def test_an_index_out_of_range_is_an_error_as_in_torch(bad: int) -> None:
    with pytest.raises(IndexError):
        BAG(None, torch.tensor([0, bad]), table(), torch.tensor([0]))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((FLAT, None), "without offsets"),
        ((FLAT.reshape(4, 2), torch.tensor([0])), "with offsets"),
        ((FLAT.reshape(2, 2, 2), None), r"\[2, 2, 2\]"),
    ],
)
def test_mistakes_are_told(arguments: tuple, words: str) -> None:
    x, offsets = arguments
    with pytest.raises(UsageError, match=words):
        BAG(None, x, table(), offsets)
    with pytest.raises(UsageError, match="per_sample_weights"):
        BAG(None, FLAT.reshape(4, 2), table(), mode="mean", per_sample_weights=torch.ones(4, 2))
