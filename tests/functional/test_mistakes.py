"""Mistakes in what a functional model is given are told in a line that names the entry; its inputs stay as they are."""

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.func import grad

from metalearn import UsageError, functionalize, random


def _with_weight(value):
    def state(model):
        return {**model.params, "0.weight": value}, model.buffers

    return state


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (_with_weight(None), r"'0\.weight' is a NoneType, the model expects a tensor of shape \[2, 2\]"),
        (_with_weight(torch.ones(2, 2).numpy()), r"'0\.weight' is a ndarray.*torch.as_tensor"),
        (_with_weight(torch.ones(2, 2, dtype=torch.int64)), r"'0\.weight' is torch.int64.*expects torch.float32"),
        (_with_weight(torch.ones(2, 2).double()), r"'0\.weight' is torch.float64, other state torch.float32.*\.to\("),
        (_with_weight(torch.ones(3, 2)), r"'0\.weight' has shape \[3, 2\], the model expects \[2, 2\]"),
        (lambda model: (model.params, {**model.buffers, "rng": 3}), "buffers\\['rng'\\] is a int.*random.key"),
        (lambda model: (model.params, {**model.buffers, "rng": torch.ones(())}), "torch.float32 of shape"),
        (lambda model: (model.params, {**model.buffers, "rng": random.key(torch.arange(3))}), "one key.*vmap"),
        (lambda model: (model.params, torch.ones(3, 2)), "`buffers` is a Tensor.*model\\(params, buffers"),
        (lambda model: ([*model.params], model.buffers), "`params` is a list"),
    ],
)
def test_an_entry_that_can_not_be_is_named(state, words: str) -> None:
    model = functionalize(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    params, buffers = state(model)
    with pytest.raises(UsageError, match=words) as caught:
        model(params, buffers, torch.ones(3, 2))
    assert "\n" not in str(caught.value)


def test_an_input_of_another_dtype_is_told() -> None:
    model = functionalize(nn.Linear(2, 2))
    with pytest.raises(UsageError, match=r"all state is torch.float32.*perhaps an input's"):
        model(model.params, model.buffers, torch.ones(3, 2).double())


def test_a_parameter_that_shares_memory_with_another_entry_is_refused() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    module[1].weight = nn.Parameter(module[0].weight.data.t())
    with pytest.raises(UsageError, match=r"'0\.weight' shares its memory with '1\.weight'.*one nn\.Parameter"):
        functionalize(module)


def test_parts_of_one_tensor_that_do_not_overlap_are_taken() -> None:
    module, whole = nn.Module(), torch.arange(12.0).reshape(3, 4)
    module.left, module.right = nn.Parameter(whole[:, :2]), nn.Parameter(whole[:, 2:])
    module.register_buffer("one", whole[0, 0].clone())
    assert list(functionalize(module).params) == ["left", "right"]


class _Windows(nn.Module):
    """Two buffers of which one is a part of the other."""

    def __init__(self, writes: bool) -> None:
        super().__init__()
        self.writes = writes
        self.register_buffer("whole", torch.zeros(4))
        self.register_buffer("part", self.whole[:2])

    def forward(self, x):
        if self.writes:
            self.whole += 1
        return x + self.part


def test_buffers_that_share_memory_may_be_read_but_not_written_into() -> None:
    model, x = functionalize(_Windows(writes=False)), torch.ones(2)
    assert torch.equal(model({}, model.buffers, x)[0], x)
    model = functionalize(_Windows(writes=True))
    for _ in range(2):
        with pytest.raises(UsageError, match="'whole' in place, which in the module shares its memory with 'part'"):
            model({}, model.buffers, x)


def test_a_tensor_that_a_function_keeps_is_seen_inside_lists_and_keywords() -> None:
    class Joins(nn.Module):
        def __init__(self, by_keyword: bool) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(2))
            w = self.w
            self.join = (lambda x: torch.add(x, other=w)) if by_keyword else (lambda x: torch.cat([w, x]))

        def forward(self, x):
            return self.join(x)

    for by_keyword in (True, False):
        model = functionalize(Joins(by_keyword))
        with pytest.raises(UsageError, match="the module's own 'w'"):
            model(model.params, model.buffers, torch.ones(2))


def test_lists_and_dicts_among_the_inputs_stay_as_they_are() -> None:
    class Takes(nn.Module):
        def forward(self, given, *, seen):
            seen.append(1)
            given["x"] = given.pop("x") * len(seen)
            return given["x"]

    model, given, seen = functionalize(Takes()), {"x": torch.ones(1)}, []
    for _ in range(3):
        assert model({}, model.buffers, given, seen=seen)[0].item() == 1
    assert (given, seen) == ({"x": torch.ones(1)}, [])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_keeps_the_modes_and_the_rows(copied) -> None:
    module = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.5))
    module[1].eval()
    model, x = functionalize(module).seeing(torch.tensor([True, True, False])), torch.randn(3, 2)
    module.train()[0].eval()  # later, and so without a meaning for the model
    other = copied(model)
    for one, another in ((model, other), (model.eval(), other.eval()), (model.normalising("set"),) * 2):
        assert torch.equal(one({}, one.buffers | one.params, x)[0], another({}, one.buffers | one.params, x)[0])
    assert (module[0].training, module[1].training) == (False, True)
    assert (other.module[0].training, other.module[1].training) == (False, True)


def test_a_model_is_equal_to_itself_alone() -> None:
    model = functionalize(nn.Linear(2, 2))
    assert {model: 1}[model] == 1
    assert model != copy.deepcopy(model)


def test_the_mode_is_one_model_however_often_it_is_asked_for() -> None:
    model = functionalize(nn.BatchNorm1d(2))
    assert model.eval()._skeletons is model.eval()._skeletons
    assert model.eval().train()._skeletons is model.train()._skeletons
    assert model.eval().normalising("set")._skeletons is model.normalising("set").eval()._skeletons


class _Cache:
    """What a generating model is handed, and fills."""

    def __init__(self) -> None:
        self.calls, self.keys, self.parts = 0, [], {"first": SimpleNamespace(keys=[])}


def test_an_object_among_the_inputs_stays_as_it_is_also_in_a_first_call_under_grad() -> None:
    class Fills(nn.Module):
        def forward(self, x, *, cache):
            cache.calls += 1
            cache.keys.append(x)
            cache.parts["first"].keys.append(x)
            return sum(cache.keys) * cache.calls * len(cache.parts["first"].keys), cache

    model, cache, x = functionalize(Fills()), _Cache(), torch.ones(1)
    assert torch.equal(grad(lambda x: model({}, model.buffers, x, cache=cache)[0][0].sum())(x), x)
    for _ in range(2):
        (output, filled), _ = model({}, model.buffers, x, cache=cache)
        assert (output.item(), filled.calls, len(filled.keys)) == (1, 1, 1)
    (output, _), _ = model({}, model.buffers, x, cache=filled)
    assert output.item() == 2 * 2 * 2
    assert (cache.calls, cache.keys, cache.parts["first"].keys, filled.calls) == (0, [], [], 1)
