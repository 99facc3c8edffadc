"""Partition and merge: by name, kind, class and predicate."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from metalearn import UsageError, functionalize, state
from metalearn.state import NORMS, Kind, excluding


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.GroupNorm(1, 2), nn.Conv2d(2, 2, 3))
        self.head = nn.Sequential(nn.LayerNorm(2), nn.Linear(2, 2))


MODEL = functionalize(Net())
EVERYTHING = {**MODEL.params, **MODEL.buffers}
NORM_PARAMS = {f"{part}.{entry}" for part in ("features.1", "features.2", "head.0") for entry in ("weight", "bias")}

FILTERS = {
    "glob": ("head.*", {name for name in MODEL.params if name.startswith("head.")}),
    "glob across dots": ("*.bias", {name for name in MODEL.params if name.endswith(".bias")}),
    "exact name": ("head.1.weight", {"head.1.weight"}),
    "a set of characters": ("features.[12].weight", {"features.1.weight", "features.2.weight"}),
    "several": (["head.1.bias", "features.0.*"], {"head.1.bias", "features.0.weight", "features.0.bias"}),
    "not": ("!features.*", {name for name in MODEL.params if name.startswith("head.")}),
    "several, some not": (["head.*", "!*.bias"], {"head.0.weight", "head.1.weight"}),
    "only not": (
        ["!features.*", "!*.bias"],
        {"head.0.weight", "head.1.weight"},
    ),
    "predicate": (lambda name, value: value.dim() == 4, {"features.0.weight", "features.3.weight"}),
    "class": (nn.GroupNorm, {"features.2.weight", "features.2.bias"}),
    "class of a container": (nn.Sequential, set(MODEL.params)),
    "a module of the model": (MODEL.module.head, {name for name in MODEL.params if name.startswith("head.")}),
    "the norms": (NORMS, NORM_PARAMS),
    "excluding the norms": (excluding(NORMS), set(MODEL.params) - NORM_PARAMS),
    "kind": (Kind.PARAMETER, set(MODEL.params)),
    "all": ("*", set(MODEL.params)),
}


@pytest.mark.parametrize("name", FILTERS)
def test_every_filter(name: str) -> None:
    which, expected = FILTERS[name]
    part, rest = state.partition(MODEL.params, which, model=MODEL)
    assert set(part) == expected
    assert set(rest) == set(MODEL.params) - expected
    assert [*part] == [each for each in MODEL.params if each in expected]  # in the original order
    assert all(value is MODEL.params[each] for each, value in (part | rest).items())


@pytest.mark.parametrize("name", FILTERS)
def test_a_module_does_for_the_model(name: str) -> None:
    which, expected = FILTERS[name]
    assert set(state.partition(MODEL.params, which, model=MODEL.module)[0]) == expected


def test_an_entry_goes_to_the_first_filter_that_it_fits() -> None:
    head, biases, rest = state.partition(MODEL.params, "head.*", "*.bias")
    assert list(head) == [name for name in MODEL.params if name.startswith("head.")]
    assert list(biases) == [name for name in MODEL.params if name.endswith(".bias") and name not in head]
    assert state.merge(head, biases, rest).keys() == MODEL.params.keys()


def test_a_class_takes_in_buffers_and_tied_tensors() -> None:
    statistics, _ = state.partition(EVERYTHING, nn.BatchNorm2d, model=MODEL)
    assert set(statistics) == {name for name in EVERYTHING if name.startswith("features.1.")}
    module = nn.Module()
    module.encode, module.norm = nn.Linear(2, 2), nn.LayerNorm(2)
    module.norm.weight = module.encode.bias  # named encode.bias, and the norm's all the same
    assert set(state.partition(dict(module.named_parameters()), nn.LayerNorm, model=module)[0]) == {
        "encode.bias",
        "norm.bias",
    }


def test_a_name_with_the_signs_of_patterns_is_found_as_itself() -> None:
    params = dict(nn.ParameterDict({"a[0]": torch.ones(1), "a0": torch.ones(1)}).named_parameters())
    assert list(state.partition(params, "a[0]")[0]) == ["a[0]"]
    assert list(state.partition(params, "a[01]")[0]) == ["a0"]


HEAD = {name for name in MODEL.params if name.startswith("head.")}
# What is wrong, what is said, and the part where it is allowed to be empty.
MISTAKES = {
    "misspelt pattern": ("haed.*", r"'haed\.\*' fits none of the 12 names\. Did you mean 'head\.\*'", set()),
    "misspelt name": ("head.1.wieght", r"'head.1.wieght' fits none.*Did you mean 'head.1.weight'", set()),
    "one of several": (["head.*", "features.9.*"], r"'features\.9\.\*' fits none", HEAD),
    "a negative one": ("!hed.*", r"'hed\.\*' fits none", set(MODEL.params)),
    "predicate": (lambda name, value: False, r"nothing is left for .*none of 12 entries", set()),
    "class": (nn.LSTM, "nothing is left for 'LSTM': none of 12 entries fits it", set()),
    "kind": (Kind.OPTIMIZER, "nothing is left for 'optimizer'", set()),
    "another model's module": (nn.Linear(2, 2), "nothing is left for 'Linear'", set()),
    "nothing at all": ([], "nothing is left for", set()),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_filter_that_fits_nothing_is_refused(name: str) -> None:
    which, text, allowed = MISTAKES[name]
    with pytest.raises(UsageError, match=text):
        state.partition(MODEL.params, which, model=MODEL)
    part, rest = state.partition(MODEL.params, which, model=MODEL, allow_empty=True)
    assert set(part) == allowed
    assert set(rest) == MODEL.params.keys() - allowed


@pytest.mark.parametrize("which", [3, None, int, ["head.*", 3], MODEL])
def test_what_is_no_filter_is_refused(which) -> None:
    with pytest.raises(UsageError, match="is no filter: expected a pattern such as"):
        state.partition(MODEL.params, which)
    with pytest.raises(UsageError) as raised:
        state.partition(MODEL.params, which)
    assert len(str(raised.value)) < 250


def test_another_name_of_a_tied_tensor_is_told() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False))
    module[1].weight = module[0].weight
    model = functionalize(module)
    with pytest.raises(UsageError, match=r"'1\.weight' is tied to '0\.weight', and state has it under that name"):
        state.partition(model.params, "1.*", model=model)
    with pytest.raises(UsageError, match=r"'2\.\*' fits none of the 2 names\. Known: '0\.bias', '0\.weight'\.$"):
        state.partition(model.params, "2.*", model=model)


def test_what_is_no_dict_is_told() -> None:
    with pytest.raises(UsageError, match=r"partition\(tensors, filter, …\) got a str, expected dicts of tensors"):
        state.partition("head.*", MODEL.params)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"merge\(part, part, …\) got a list"):
        state.merge([MODEL.params])  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"override\(base, changes\) got a Tensor"):
        state.override(MODEL.params, torch.ones(1))  # type: ignore[arg-type]


def test_a_filter_whose_entries_are_taken_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"nothing is left for 'head.0.bias': all that fits it went to a filter before"
    ):
        state.partition(MODEL.params, "head.*", "head.0.bias")


@pytest.mark.parametrize("which", [Kind.PARAMETER, nn.BatchNorm2d, NORMS, MODEL.module.head])
def test_a_filter_that_needs_the_model_says_so(which) -> None:
    with pytest.raises(UsageError, match="needs the model to tell names apart: pass model=model"):
        state.partition(MODEL.params, which)


def test_of_many_names_an_error_lists_what_they_begin_with() -> None:
    many = {f"blocks.{index}.weight": torch.ones(1) for index in range(40)} | {"out": torch.ones(1)}
    with pytest.raises(UsageError, match=r"'zz' fits none of the 41 names\. The names begin with 'blocks', 'out'\.$"):
        state.partition(many, "zz")


def test_everything_of_an_empty_model_is_empty() -> None:
    assert state.partition({}, "*") == ({}, {})
    assert state.merge() == {}


def test_merge_refuses_a_name_twice() -> None:
    with pytest.raises(UsageError, match=r"'head.0.weight' is in two of the parts \(4 such names"):
        state.merge(*state.partition(MODEL.params, "head.*"), {n: v for n, v in MODEL.params.items() if "head" in n})


def test_override() -> None:
    change = {"head.1.bias": torch.full((2,), 7.0)}
    changed = state.override(MODEL.params, change)
    assert list(changed) == list(MODEL.params)
    assert changed["head.1.bias"] is change["head.1.bias"]
    assert MODEL.params["head.1.bias"] is not change["head.1.bias"]
    with pytest.raises(UsageError, match=r"no 'head.1.bais' to override. Did you mean 'head.1.bias'"):
        state.override(MODEL.params, {"head.1.bais": torch.ones(2)})
    with pytest.raises(UsageError, match=r"'head.1.bias' has shape \[3\], expected \[2\]"):
        state.override(MODEL.params, {"head.1.bias": torch.ones(3)})
    with pytest.raises(UsageError, match=r"'head.1.bias' is int64, expected float32"):
        state.override(MODEL.params, {"head.1.bias": torch.ones(2, dtype=torch.int64)})


NAMES = st.lists(st.text("ab.", min_size=1, max_size=4), unique=True, max_size=8)


@settings(deadline=None)
@given(NAMES, st.lists(st.text("ab.*?!", min_size=1, max_size=3), max_size=3))
def test_the_parts_are_disjoint_ordered_and_whole(names: list[str], patterns: list[str]) -> None:
    tensors = {name: torch.zeros(1) for name in names}
    parts = state.partition(tensors, *patterns, allow_empty=True)
    assert len(parts) == len(patterns) + 1
    assert sorted(state.merge(*parts)) == sorted(names)
    assert all(list(part) == [name for name in names if name in part] for part in parts)


def test_describe_is_plain_data() -> None:
    which = [Kind.BUFFER, "head.*", excluding(nn.LSTM, "*.bias")]
    assert state.describe(which) == ["buffer", "head.*", {"excluding": ["LSTM", "*.bias"]}]
    assert state.describe(test_override) == "test_override"
