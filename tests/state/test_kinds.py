"""Kinds of state, told apart by name."""

import pytest
import torch
from torch import nn

from metalearn import UsageError, functionalize, optim, state
from metalearn.state import Kind
from tests.stateful import StatefulCounter


def _model():
    torch.manual_seed(0)
    hidden = nn.utils.spectral_norm(nn.Linear(3, 3))
    module = nn.Sequential(hidden, nn.BatchNorm1d(3), nn.InstanceNorm1d(3, track_running_stats=True), nn.Linear(3, 2))
    module.register_buffer("positions", torch.arange(3))
    return functionalize(module)


def test_every_name_has_its_kind() -> None:
    found = state.kinds(_model())
    statistics = {f"{index}.{name}" for index in (1, 2) for name in ("running_mean", "running_var")}
    statistics |= {"1.num_batches_tracked", "2.num_batches_tracked"}
    expected = {
        Kind.PARAMETER: {"0.bias", "0.weight_orig", "1.weight", "1.bias", "3.weight", "3.bias"},
        Kind.BATCH_STATISTIC: statistics,
        Kind.BUFFER: {"positions", "0.weight_u", "0.weight_v"},
        Kind.RANDOM: {"rng"},
        Kind.OPTIMIZER: set(),
    }
    assert {kind: {name for name in found if found[name] is kind} for kind in Kind} == expected


def test_a_parameter_that_forward_assigned_to_is_still_one() -> None:
    model = functionalize(StatefulCounter())
    _, buffers = model(model.params, model.buffers, torch.ones(2))
    assert "count" in buffers
    told_apart = state.by_kind(model, model.params, buffers)
    assert told_apart[Kind.PARAMETER]["count"] is buffers["count"]  # the one that counts in a call
    assert list(told_apart[Kind.RANDOM]) == ["rng"]


def test_by_kind_and_merge_are_inverse() -> None:
    model = _model()
    opt_state = optim.adam(0.1).init(model.params)
    told_apart = state.by_kind(model, model.params, model.buffers, opt_state)
    everything = {**model.params, **model.buffers, **state.named(opt_state)}
    merged = state.merge(*told_apart.values())
    assert merged.keys() == everything.keys()
    assert all(merged[name] is everything[name] for name in everything)
    assert told_apart[Kind.PARAMETER].keys() == model.params.keys()
    assert state.from_named(told_apart[Kind.OPTIMIZER], like=opt_state) == opt_state


def test_a_partition_by_kind_is_the_same() -> None:
    model = _model()
    everything = {**model.params, **model.buffers, **state.named(optim.sgd(0.1, momentum=0.9).init(model.params))}
    *parts, rest = state.partition(everything, *Kind, model=model)
    told_apart = state.by_kind(model, model.params, model.buffers, optim.sgd(0.1, momentum=0.9).init(model.params))
    assert rest == {}
    assert [list(part) for part in parts] == [list(told_apart[kind]) for kind in Kind]


def test_an_unknown_name_has_no_kind() -> None:
    with pytest.raises(UsageError, match=r"'1.runing_mean' is no parameter.*Did you mean '1.running_mean'"):
        state.kinds(_model(), ["1.runing_mean"])
    with pytest.raises(UsageError, match="model is dict: expected a FunctionalModel"):
        state.kinds({})
    with pytest.raises(UsageError, match=r"names is the text 'rng', expected several names: \['rng'\]"):
        state.kinds(_model(), "rng")
    with pytest.raises(UsageError, match=r"by_kind\(model, params, buffers\) got a NoneType"):
        state.by_kind(_model(), None, None)
