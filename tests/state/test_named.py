"""Nests of tensors as plain dicts by path, and back."""

from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metalearn import UsageError, optim, state, tree
from metalearn.inner import Adapted
from metalearn.testing import assert_close

PARAMS = {"features.0.weight": torch.ones(2, 3), "head.bias": torch.ones(2)}
OPTIMIZERS = {
    "sgd": optim.sgd(0.1),
    "momentum": optim.sgd(0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": optim.adam(0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_goes_on_from_what_was_named(name: str) -> None:
    optimizer, params, grads = OPTIMIZERS[name], PARAMS, tree.map_tensors(lambda x: 0.5 * x, PARAMS)
    opt_state = optimizer.update(grads, optimizer.init(params), params)[1]
    flat = state.named(opt_state)
    assert all(each.startswith("opt_state.") for each in flat)
    again = state.from_named(flat, like=optimizer.init(params))
    assert type(again) is type(opt_state)
    expected, got = (optimizer.update(grads, each, params)[0] for each in (opt_state, again))
    assert_close(got, expected, tolerance=0.0)


def test_names_are_paths() -> None:
    opt_state = optim.sgd(0.1, momentum=0.9).init(PARAMS)
    assert list(state.named(opt_state, prefix="")) == [
        "num_steps",
        "trace.features.0.weight",
        "trace.head.bias",
    ]


def test_a_torch_optimizers_state_can_be_named() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([weight], 0.1)
    weight.square().sum().backward()
    optimizer.step()
    own = optimizer.state_dict()
    flat = state.named(own)
    assert set(flat) == {f"opt_state.state.0.{entry}" for entry in ("step", "exp_avg", "exp_avg_sq")}
    again = state.from_named(tree.map_tensors(torch.clone, flat), like=own)
    assert again["param_groups"] == own["param_groups"]
    optimizer.load_state_dict(again)


LEAVES = st.sampled_from([torch.zeros(2), torch.ones((), dtype=torch.int64), 1.5, None, "text"])
KEYS = st.text("abc", min_size=1, max_size=2)
NESTS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.tuples(inner, inner), st.dictionaries(KEYS, inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(deadline=None)
@given(NESTS)
def test_any_nest_comes_back(nest: Any) -> None:
    flat = state.named(nest)
    assert len(flat) == len(tree.tensors(nest))
    again = state.from_named({name: value + 1 for name, value in flat.items()}, like=nest)
    assert tree.flatten(again)[1] == tree.flatten(nest)[1]
    for got, leaf in zip(tree.flatten(again)[0], tree.flatten(nest)[0], strict=True):
        assert torch.equal(got, leaf + 1) if isinstance(leaf, torch.Tensor) else got == leaf


class Pair(NamedTuple):
    first: Any
    second: Any


def test_what_can_not_be_named_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'opt_state.0' is of type Adapted, in which tensors can not be found"):
        state.named([Adapted({}, {}, None)])
    with pytest.raises(UsageError, match=r"two tensors of the nest have the name 'opt_state.a.b'"):
        state.named({"a.b": torch.ones(1), "a": {"b": torch.ones(1)}})
    with pytest.raises(UsageError, match="a tensor alone has no name"):
        state.named(torch.ones(1), prefix="")
    assert list(state.named(torch.ones(1))) == ["opt_state"]


def test_from_named_is_strict() -> None:
    like = Pair(first=torch.zeros(2), second={"a": torch.zeros((), dtype=torch.int64)})
    good = state.named(like)
    with pytest.raises(UsageError, match=r"it has 'opt_state.frist' in place of 'opt_state.first'"):
        state.from_named({"opt_state.frist": torch.zeros(2), "opt_state.second.a": good["opt_state.second.a"]}, like)
    with pytest.raises(UsageError, match=r"'opt_state.first' has shape \[3, 2\], expected \[2\]\. It has an axis more"):
        state.from_named({**good, "opt_state.first": torch.zeros(3, 2)}, like)
    with pytest.raises(UsageError, match=r"'opt_state.second.a' is float32, expected int64"):
        state.from_named({**good, "opt_state.second.a": torch.zeros(())}, like)
    with pytest.raises(UsageError, match=r"it has no 'opt_state.first'"):
        state.from_named({name: value for name, value in good.items() if name != "opt_state.first"}, like)
