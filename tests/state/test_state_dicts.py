"""State dicts in and out, and writing state back: with torch's own `load_state_dict` as the judge."""

import copy

import pytest
import torch
from torch import nn

from metalearn import UsageError, functionalize, state, tree
from tests.state.modules import MODULES, Buffers, Tied, WithExtraState


def _other(module: nn.Module) -> nn.Module:
    """The same module with other values everywhere."""
    other = copy.deepcopy(module)
    with torch.no_grad():
        for value in (*other.parameters(), *other.buffers()):
            value.copy_(~value if value.dtype == torch.bool else value + 1)
    return other


def _assert_equal(got, expected) -> None:
    assert list(got) == list(expected)
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert got[name].dtype == value.dtype, name
            assert torch.equal(got[name], value), name
        else:
            assert got[name] == value, name


@pytest.mark.parametrize("name", MODULES)
def test_to_state_dict_is_the_modules_own(name: str) -> None:
    torch.manual_seed(0)
    model = functionalize(MODULES[name]())
    other = functionalize(_other(model.module))
    _assert_equal(state.to_state_dict(model, model.params, model.buffers), model.module.state_dict())
    written = state.to_state_dict(model, other.params, other.buffers)
    _assert_equal(written, other.module.state_dict())
    target = copy.deepcopy(model.module)
    target.load_state_dict(written)  # strict
    _assert_equal(target.state_dict(), other.module.state_dict())


@pytest.mark.parametrize("name", MODULES)
def test_from_state_dict_is_what_functionalize_finds(name: str) -> None:
    torch.manual_seed(0)
    model = functionalize(MODULES[name]())
    other = functionalize(_other(model.module))
    params, buffers = state.from_state_dict(model, other.module.state_dict())
    _assert_equal(params, other.params)
    persistent = other.module.state_dict().keys() | {"rng"}
    _assert_equal(buffers, {**other.buffers, **{n: v for n, v in model.buffers.items() if n not in persistent}})
    own = {value.untyped_storage().data_ptr() for value in other.module.state_dict(keep_vars=True).values()
           if isinstance(value, torch.Tensor) and value.numel()}  # fmt: skip
    assert not own & {value.untyped_storage().data_ptr() for value in (params | buffers).values()}  # copies


@pytest.mark.parametrize("name", MODULES)
def test_load_into_makes_the_module_the_other_one(name: str) -> None:
    torch.manual_seed(0)
    module = MODULES[name]()
    other = functionalize(_other(module))
    before = dict((*module.named_parameters(), *module.named_buffers()))
    state.load_into(module, other.params, other.buffers)
    after = dict((*module.named_parameters(), *module.named_buffers()))
    assert all(after[name] is before[name] for name in before)  # in place
    assert all(value.requires_grad == isinstance(value, nn.Parameter) for value in after.values())
    _assert_equal(after, {name: value for name, value in (other.params | other.buffers).items() if name != "rng"})
    _assert_equal(module.state_dict(), other.module.state_dict())


def test_a_state_dict_may_bring_the_key() -> None:
    model = functionalize(nn.Linear(2, 2))
    own = model.module.state_dict()
    assert torch.equal(state.from_state_dict(model, own)[1]["rng"], model.buffers["rng"])
    assert state.from_state_dict(model, {**own, "rng": torch.tensor(7)})[1]["rng"].item() == 7
    assert "rng" not in state.to_state_dict(model, model.params, model.buffers)


def test_a_shadowed_parameter_wins() -> None:
    model = functionalize(nn.Linear(2, 2))
    buffers = {**model.buffers, "weight": torch.full((2, 2), 5.0)}
    assert torch.equal(state.to_state_dict(model, model.params, buffers)["weight"], buffers["weight"])
    module = nn.Linear(2, 2)
    state.load_into(module, model.params, buffers)
    assert torch.equal(module.weight, buffers["weight"])
    assert torch.equal(module.bias, model.params["bias"])
    # In a model whose own buffers shadow it too.
    params, _ = state.from_state_dict(
        model.with_buffers(buffers), {**model.module.state_dict(), "weight": torch.ones(2, 2)}
    )
    assert torch.equal(params["weight"], torch.ones(2, 2))


def test_one_of_a_tied_tensors_names_is_enough_and_two_values_are_refused() -> None:
    model = functionalize(Tied())
    own = model.module.state_dict()
    for key in ("encode.weight", "decode.weight", "left.1.running_mean"):
        _assert_equal(*(state.from_state_dict(model, d)[0] for d in ({k: v for k, v in own.items() if k != key}, own)))
    with pytest.raises(UsageError, match=r"two values for one tensor, .* as 'encode.weight' and as 'decode.weight'"):
        state.from_state_dict(model, {**own, "decode.weight": torch.zeros(4, 4)})
    half, nan = own["decode.weight"].half(), torch.full((4, 4), torch.nan)
    for tied in ({"encode.weight": half.float(), "decode.weight": half}, {"encode.weight": nan, "decode.weight": nan}):
        found = state.from_state_dict(model, {**own, **tied})[0]["encode.weight"]
        assert torch.allclose(found, tied["encode.weight"], rtol=0, atol=0, equal_nan=True)
    neither = {key: value for key, value in own.items() if not key.endswith("code.weight")}
    with pytest.raises(UsageError, match=r"it has no 'encode.weight'"):
        state.from_state_dict(model, neither)


def test_values_take_the_dtype_of_the_model_as_in_torch() -> None:
    model = functionalize(nn.Linear(2, 2))
    given = {name: value.double() for name, value in model.module.state_dict().items()}
    params, _ = state.from_state_dict(model, given)
    assert {value.dtype for value in params.values()} == {torch.float32}
    assert state.from_state_dict(model.to(torch.bfloat16), given)[0]["weight"].dtype == torch.bfloat16
    module = nn.Linear(2, 2).half()
    state.load_into(module, params, model.buffers)
    assert module.weight.dtype == torch.float16


def test_extra_state_stays_with_the_module() -> None:
    model = functionalize(WithExtraState())
    params, _ = state.from_state_dict(model, {**model.module.state_dict(), "_extra_state": {"version": 9}})
    assert list(params) == ["weight"]
    assert state.to_state_dict(model, params, model.buffers)["_extra_state"] == {"version": 7}


GOOD = functionalize(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))).module.state_dict()
MISTAKES = {
    "missing": (lambda d: _without(d, "2.bias"), r"does not fit the Sequential: it has no '2.bias'\. Every name"),
    "extra": (lambda d: {**d, "zebra": torch.ones(1)}, r"it has 'zebra', which is not known there\. Known: .* Or"),
    "misspelt": (
        lambda d: {**_without(d, "2.weight"), "2.wieght": d["2.weight"]},
        r"it has '2.wieght' in place of '2.weight'\. Did you mean '2.weight'\?$",
    ),
    "shape": (
        lambda d: {**d, "0.weight": torch.ones(2, 3)},
        r"'0.weight' has shape \[2, 3\], expected \[3, 2\]\. Is it from a model of another size\?$",
    ),
    "batched": (
        lambda d: {**d, "0.weight": torch.ones(5, 3, 2)},
        r"'0.weight' has shape \[5, 3, 2\], expected \[3, 2\]\. It has an axis more in front",
    ),
    "dtype": (lambda d: {**d, "0.bias": torch.ones(3, dtype=torch.int64)}, "'0.bias' is int64, expected float32"),
    "count as float": (lambda d: {**d, "1.num_batches_tracked": torch.tensor(1.0)}, "is float32, expected int64"),
    "no tensor": (lambda d: {**d, "0.bias": 3.0}, "'0.bias' is of type float, no tensor"),
    "several": (
        lambda d: {**_without(d, "0.bias", "1.bias"), "0.weight": torch.ones(1), "2.weight": torch.ones(1)},
        r"it has no '0.bias'.*\n3 more problems: it has no '1.bias'; '0.weight' has shape \[1\].*; '2.weight' has",
    ),
    "none of it": (lambda d: {}, r"it has no '0.weight'.*\n8 more problems: .*; and 5 more\.$"),
    "DataParallel's": (
        lambda d: tree.prefixed(d, "module."),
        r"all its 9 names begin with 'module.'\. Pass metalearn.tree.select\(…, 'module.'\)\.$",
    ),
    "DataParallel's, and an epoch": (
        lambda d: {"epoch": torch.tensor(3), **tree.prefixed(d, "module.")},
        r"its names begin with 'module\.', beside others\. Pass metalearn.tree.select\(…, 'module.'\)\.$",
    ),
    "a checkpoint's of DataParallel": (
        lambda d: {"epoch": 3, "model": tree.prefixed(d, "module.")},
        r"level down, and begin with 'module\.'\. Pass metalearn.tree.select\(…\['model'\], 'module.'\)\.$",
    ),
    "a checkpoint's": (lambda d: {"epoch": 3, "model": d}, r"its tensors are a level down\. Pass …\['model'\]\.$"),
    "a part's": (lambda d: {name[2:]: value for name, value in d.items() if name[0] == "2"}, "it has 'weight'"),
}  # fmt: skip


def _without(tensors, *names):
    return {name: value for name, value in tensors.items() if name not in names}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_state_dict_that_does_not_fit_is_refused(name: str) -> None:
    change, text = MISTAKES[name]
    model = functionalize(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)))
    with pytest.raises(UsageError, match=text):
        state.from_state_dict(model, change(GOOD))


@pytest.mark.parametrize("name", MISTAKES)
def test_load_into_writes_all_or_nothing(name: str) -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    before = copy.deepcopy(module.state_dict())
    changed = MISTAKES[name][0](GOOD)
    with pytest.raises(UsageError, match="the state does not fit the Sequential"):
        state.load_into(module, changed, {})
    _assert_equal(module.state_dict(), before)


def test_a_prefix_that_is_lacking_is_named() -> None:
    model = functionalize(nn.ModuleDict({"backbone": nn.Linear(2, 2)}))
    with pytest.raises(
        UsageError, match=r"all its 2 names lack 'backbone.'\. Pass metalearn.tree.prefixed\(…, 'backbone.'"
    ):
        state.from_state_dict(model, nn.Linear(2, 2).state_dict())
    fitting = tree.prefixed(nn.Linear(2, 2).state_dict(), "backbone.")
    assert state.from_state_dict(model, fitting)[0].keys() == model.params.keys()


def test_an_optimizer_goes_on_after_load_into() -> None:
    module = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(module.parameters(), 0.5)
    model = functionalize(module)
    state.load_into(module, {name: torch.ones_like(value) for name, value in model.params.items()}, model.buffers)
    module(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert torch.equal(module.weight, torch.full((1, 2), 0.5))


def test_values_may_be_the_modules_own_tensors_swapped() -> None:
    module = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    first, second = (value.detach().clone() for value in module.parameters())
    state.load_into(module, {"0.weight": module[1].weight, "1.weight": module[0].weight}, {})
    assert torch.equal(module[0].weight, second)
    assert torch.equal(module[1].weight, first)


def test_values_with_history_are_written_without_it() -> None:
    module, factor = nn.Linear(2, 2), torch.tensor(2.0, requires_grad=True)
    model = functionalize(module)
    state.load_into(module, {name: value * factor for name, value in model.params.items()}, model.buffers)
    assert module.weight.is_leaf
    assert torch.equal(module.weight, model.params["weight"] * 2)


def test_a_transform_that_is_going_on_is_refused() -> None:
    module = nn.Linear(2, 2)
    model = functionalize(module)
    before = copy.deepcopy(module.state_dict())

    def inside(params):
        state.load_into(module, params, model.buffers)
        return params["weight"].sum()

    with pytest.raises(UsageError, match=r"'weight' belongs to a torch.func transform"):
        torch.func.grad(inside)(model.params)
    with pytest.raises(UsageError, match=r"belongs to a torch.func transform"):
        torch.vmap(inside)(tree.map_tensors(lambda leaf: leaf.expand(3, *leaf.shape), model.params))
    _assert_equal(module.state_dict(), before)


def test_nothing_is_written_to_or_from_the_meta_device() -> None:
    model = functionalize(nn.Linear(2, 2))
    before = copy.deepcopy(model.module.state_dict())
    with pytest.raises(UsageError, match="the module's 'weight' is on the meta device"):
        state.load_into(nn.Linear(2, 2, device="meta"), model.params, model.buffers)
    with pytest.raises(UsageError, match="the value of 'bias' is on the meta device"):
        state.load_into(model.module, {"weight": torch.ones(2, 2), "bias": torch.ones(2, device="meta")}, {})
    _assert_equal(model.module.state_dict(), before)


def test_a_state_dict_of_a_large_other_model_is_told_in_two_lines() -> None:
    large = {f"block.{index}.{entry}": torch.ones(1) for index in range(2000) for entry in ("gamma", "beta")}
    model = functionalize(nn.Sequential(*(nn.Linear(1, 1) for _ in range(200))))
    with pytest.raises(UsageError, match=r"it has 'block.0.gamma'.* The names begin with '0', '1', .* …\.") as raised:
        state.from_state_dict(model, large)
    assert str(raised.value).count("\n") == 1
    assert "4399 more problems" in str(raised.value)
    assert len(str(raised.value)) < 500


def test_what_is_no_dict_is_refused() -> None:
    model = functionalize(nn.Linear(2, 2))
    with pytest.raises(UsageError, match=r"the state dict is of type Linear: pass module.state_dict\(\)"):
        state.from_state_dict(model, model.module)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"load_into\(module, params, buffers\) got a NoneType, expected dicts"):
        state.load_into(model.module, model.params, None)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"to_state_dict\(model, params, buffers\) got a list"):
        state.to_state_dict(model, [], {})  # type: ignore[arg-type]


def test_a_module_for_the_model_and_the_reverse_are_told() -> None:
    model = functionalize(nn.Linear(2, 2))
    for function in (state.from_state_dict, state.to_state_dict):
        with pytest.raises(UsageError, match=r"model is a Linear, expected metalearn.functionalize\(module\)"):
            function(model.module, *({}, {})[: 1 if function is state.from_state_dict else 2])
    with pytest.raises(UsageError, match=r"got a FunctionalModel: pass model\.module"):
        state.load_into(model, model.params, model.buffers)  # type: ignore[arg-type]


def test_a_state_dict_without_numbers_is_refused() -> None:
    model = functionalize(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)))
    with pytest.raises(UsageError, match=r"the state dict's '0\.bias' is on the meta device, without numbers"):
        state.from_state_dict(model, {**GOOD, "0.bias": torch.ones(3, device="meta")})


def test_what_is_told_of_a_prefix_mends_it() -> None:
    model = functionalize(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)))
    found = {"epoch": torch.tensor(3), **tree.prefixed(GOOD, "module.")}
    params, _ = state.from_state_dict(model, tree.select(found, "module."))
    assert torch.equal(params["0.weight"], GOOD["0.weight"])


def test_an_expanded_buffer_is_left_alone_or_refused() -> None:
    module = nn.Linear(2, 2)
    module.register_buffer("mask", torch.ones(1).expand(3))
    model = functionalize(module)
    state.load_into(module, {name: value + 1 for name, value in model.params.items()}, model.buffers)
    assert torch.equal(module.weight, model.params["weight"] + 1)
    with pytest.raises(UsageError, match="'mask' is an expanded tensor"):
        state.load_into(module, model.params, {**model.buffers, "mask": torch.zeros(3)})
    assert torch.equal(module.weight, model.params["weight"] + 1)  # nothing is written


def test_a_lazy_target_and_a_module_that_has_changed_are_refused() -> None:
    with pytest.raises(UsageError, match="the module's 'weight' has no shape yet"):
        state.load_into(nn.LazyLinear(2), {"weight": torch.ones(2, 2), "bias": torch.ones(2)}, {})
    module = Buffers()
    model = functionalize(module)
    module.register_buffer("later", torch.ones(1))
    with pytest.raises(UsageError, match="the module has got 'later' since it was functionalized"):
        state.from_state_dict(model, module.state_dict())


def test_a_state_dict_made_by_a_hook_is_refused() -> None:
    module = nn.Linear(2, 2)
    module.register_state_dict_post_hook(lambda module, result, prefix, metadata: result.update(doubled=torch.ones(1)))
    model = functionalize(module)
    with pytest.raises(UsageError, match=r"holds 'doubled', which is no parameter or buffer of it \(a hook makes it\)"):
        state.to_state_dict(model, model.params, model.buffers)
