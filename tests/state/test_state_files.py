"""State in files: what was saved comes back, and nothing else is read."""

import copy
import os

import pytest
import safetensors.torch
import torch
from torch import nn

from metalearn import UsageError, functionalize, optim, state
from tests.state.modules import MODULES, Tied


def _assert_equal(got, expected) -> None:
    assert list(got) == list(expected)
    for name, value in expected.items():
        assert got[name].dtype == value.dtype, name
        assert torch.equal(got[name], value), name


@pytest.mark.parametrize("name", MODULES)
def test_state_comes_back(name: str, tmp_path) -> None:
    torch.manual_seed(0)
    model = functionalize(MODULES[name](), seed=5)
    optimizer = optim.adam(0.1)
    opt_state = optimizer.init(model.params)
    state.save(tmp_path / "s", model.params, model.buffers, opt_state=state.named(opt_state), empty={})
    saved = state.load(tmp_path / "s")
    _assert_equal(saved.params, model.params)
    _assert_equal(saved.buffers, model.buffers)
    again = state.from_named(saved.more["opt_state"], like=opt_state)
    _assert_equal(state.named(again), state.named(opt_state))
    assert saved.more["empty"] == {}
    assert [each.name for each in tmp_path.iterdir()] == ["s"]  # no temporary file


@pytest.mark.parametrize("name", [name for name in MODULES if name != "extra state"])
def test_a_state_dict_goes_through_a_plain_file_to_torch(name: str, tmp_path) -> None:
    torch.manual_seed(0)
    model = functionalize(MODULES[name]())
    path = tmp_path / "model.safetensors"
    state.write_state_dict(path, state.to_state_dict(model, model.params, model.buffers))
    target = copy.deepcopy(model.module)
    with torch.no_grad():
        for value in (*target.parameters(), *target.buffers()):
            value.zero_()
    target.load_state_dict(safetensors.torch.load_file(path))  # strict, and nothing of ours in it
    own = model.module.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in target.state_dict().items())
    params, buffers = state.from_state_dict(model, state.read_state_dict(path))
    _assert_equal(params, model.params)
    _assert_equal(buffers, model.buffers)


def test_a_file_that_left_tied_names_out_is_read(tmp_path) -> None:
    # safetensors' own writer of modules keeps one name of each tied tensor.
    module = Tied()
    safetensors.torch.save_model(module, str(tmp_path / "f"))
    assert len(state.read_state_dict(tmp_path / "f")) < len(module.state_dict())
    params, _ = state.from_state_dict(functionalize(Tied()), state.read_state_dict(tmp_path / "f"))
    _assert_equal(params, functionalize(module).params)


def test_views_expanded_and_differentiable_values_are_saved_as_what_they_show(tmp_path) -> None:
    whole = torch.arange(6.0).reshape(2, 3)
    params = {
        "t": whole.T,
        "row": whole[0],
        "wide": torch.ones(1).expand(4),
        "grad": whole.clone().requires_grad_() * 2,
    }
    state.save(tmp_path / "s", params, {})
    _assert_equal(state.load(tmp_path / "s").params, {name: value.detach() for name, value in params.items()})


def test_a_shadowed_parameter_is_in_both(tmp_path) -> None:
    state.save(tmp_path / "s", {"count": torch.zeros(1)}, {"count": torch.ones(1)})
    saved = state.load(tmp_path / "s")
    assert (saved.params["count"].item(), saved.buffers["count"].item()) == (0, 1)


def test_a_crash_while_writing_leaves_the_old_file(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s"
    state.save(path, {"a": torch.zeros(1)}, {})

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        with pytest.raises(UsageError, match="can not be written \\(No space left on device\\)"):
            state.save(path, {"a": torch.ones(1)}, {})
    assert state.load(path).params["a"].item() == 0
    assert [each.name for each in tmp_path.iterdir()] == ["s"]


def _plain(path):
    safetensors.torch.save_file({"w": torch.ones(1)}, path)


def _newer(path):
    safetensors.torch.save_file({"params/w": torch.ones(1)}, path, {"format": "metalearn-state", "version": "2"})


def _incomplete(path):
    metadata = {"format": "metalearn-state", "version": "1", "groups": '{"params": ["w"], "buffers": []}'}
    safetensors.torch.save_file({"params/v": torch.ones(1)}, path, metadata)


def _cut(path):
    state.save(path, {"w": torch.ones(100)}, {})
    path.write_bytes(path.read_bytes()[:-50])


NO_FILES_OF_OURS = {
    "missing": (lambda path: None, "there is no file"),
    "a folder": (lambda path: path.mkdir(), "can not be read"),
    "text": (lambda path: path.write_text("hello, this is text"), "is not a safetensors file, or damaged"),
    "empty": (lambda path: path.write_bytes(b""), "is not a safetensors file, or damaged"),
    "torch.save": (
        lambda path: torch.save({"w": torch.ones(1)}, path),
        r"is not a safetensors file, or damaged .*\. torch\.load\(…, weights_only=True\) reads",
    ),
    "plain": (_plain, r"is not a file of metalearn.state.save\. metalearn.state.read_state_dict reads"),
    "newer": (_newer, "has the format version 2; this version of metalearn reads 1"),
    "incomplete": (_incomplete, r"is incomplete \(KeyError: 'params/w'\)"),
    "cut short": (_cut, "is not a safetensors file, or damaged"),
}


@pytest.mark.parametrize("name", NO_FILES_OF_OURS)
def test_load_refuses_other_files_in_a_line(name: str, tmp_path) -> None:
    make, text = NO_FILES_OF_OURS[name]
    make(tmp_path / "f")
    with pytest.raises(UsageError, match=text) as raised:
        state.load(tmp_path / "f")
    assert "\n" not in str(raised.value)
    if name not in ("plain", "incomplete", "newer"):
        with pytest.raises(UsageError, match=text):
            state.read_state_dict(tmp_path / "f")


def test_a_file_of_save_is_no_state_dict(tmp_path) -> None:
    state.save(tmp_path / "f", {"w": torch.ones(1)}, {})
    with pytest.raises(UsageError, match=r"read it with metalearn.state.load"):
        state.read_state_dict(tmp_path / "f")


def test_what_can_not_be_saved_is_refused(tmp_path) -> None:
    with pytest.raises(
        UsageError, match=r"opt_state= is of type CountState, expected a dict of tensors.*metalearn.state.named"
    ):
        state.save(tmp_path / "f", {}, {}, opt_state=optim.sgd(0.1).init({}))
    with pytest.raises(UsageError, match="params= has 'w' of type float"):
        state.save(tmp_path / "f", {"w": 1.0}, {})
    with pytest.raises(UsageError, match=r"'params/w' is of layout torch.sparse_coo.* save .to_dense\(\)"):
        state.save(tmp_path / "f", {"w": torch.ones(2, 2).to_sparse()}, {})
    with pytest.raises(UsageError, match="'params/w' is on the meta device, without numbers"):
        state.save(tmp_path / "f", {"w": torch.ones(2, device="meta")}, {})
    with pytest.raises(UsageError, match=r"'w' belongs to a torch\.func transform .* that is going on"):
        torch.vmap(lambda x: state.write_state_dict(tmp_path / "f", {"w": x}) or x)(torch.ones(2, 2))
    with pytest.raises(UsageError, match=r"the state dict has '_extra_state' of type dict.*: leave it out"):
        state.write_state_dict(tmp_path / "f", MODULES["extra state"]().state_dict())
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="can not be written"):
        state.save(tmp_path / "file" / "f", {"w": torch.ones(1)}, {})
    assert not (tmp_path / "f").exists()


def test_a_group_with_a_slash_is_refused_since_two_entries_would_be_one(tmp_path) -> None:
    with pytest.raises(UsageError, match="the group 'params/x' has a slash in its name"):
        state.save(tmp_path / "f", {"x/a": torch.zeros(1)}, {}, **{"params/x": {"a": torch.ones(1)}})
    state.save(tmp_path / "f", {"x/a": torch.zeros(1)}, {}, x={"a": torch.ones(1)})
    saved = state.load(tmp_path / "f")
    assert (saved.params["x/a"].item(), saved.more["x"]["a"].item()) == (0, 1)


def test_a_device_that_there_is_not_is_told(tmp_path) -> None:
    state.save(tmp_path / "f", {"w": torch.ones(1)}, {})
    for read in (state.load, state.read_state_dict):
        with pytest.raises(UsageError, match=r"device='gpu' can not be used here .* 'cpu' always can\."):
            read(tmp_path / "f", device="gpu")


def test_an_adaptation_goes_on_from_a_file_bit_for_bit(tmp_path) -> None:
    from metalearn import adapt

    model = functionalize(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1)), seed=2)
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    optimizer = optim.adam(0.05)

    def loss_fn(params, buffers, batch):
        output, buffers = model(params, buffers, batch)
        return output.square().mean(), buffers

    def steps(params, buffers, count, opt_state=None):
        arguments = {"optimizer": optimizer, "num_inner_steps": count, "opt_state": opt_state}
        return adapt(loss_fn, params, buffers, x, **arguments)

    whole, half = (steps(model.params, model.buffers, count) for count in (6, 3))
    state.save(tmp_path / "half", half.params, half.buffers, opt_state=state.named(half.opt_state))
    saved = state.load(tmp_path / "half")
    like = optimizer.init(saved.params)
    rest = steps(saved.params, saved.buffers, 3, state.from_named(saved.more["opt_state"], like=like))
    _assert_equal(rest.params, whole.params)
    _assert_equal(rest.buffers, whole.buffers)
