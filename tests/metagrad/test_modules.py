"""The certification table of modules: every kind of layer, unrewritten, in every way of running tasks."""

import inspect
import re
from contextlib import nullcontext
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from metalearn import UsageError, tree
from metalearn.execution import Loop, Vmap
from metalearn.metagrad import Unrolled
from metalearn.testing import assert_close, check_meta_gradient
from tests.zoo.rows import Case, Row, case_of, problem_of, silenced, untouched
from tests.zoo.table import ROWS

WAYS = {"vmap": Vmap(), "chunks of 2": Vmap(chunk_size=2)}

rows = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if row.slow else []) for name, row in ROWS.items()]
)


@cache
def case(name: str) -> Case:
    return case_of(ROWS[name])


@cache
def in_a_loop(name: str):
    made = case(name)
    return Loop().value_and_grad(Unrolled(), made.problem)(made.meta, made.episodes)


@rows
def test_the_value_and_the_buffers_are_those_of_the_module_itself(name: str) -> None:
    made, own = case(name), ROWS[name].module()
    model = made.model
    if made.row.draws:  # torch draws other numbers
        own, model = own.eval(), model.eval()
    args, kwargs = made.episode.support.inputs
    with untouched(made.module):
        output, buffers = model(model.params, model.buffers, *args, **kwargs)
    expected = own(*args, **kwargs)
    got = made.row.outputs(output)
    assert len(got) > 0
    torch.testing.assert_close(got, made.row.outputs(expected), rtol=1e-11, atol=1e-12)
    after = {name: buffers[name] for name, _ in own.named_buffers()}
    torch.testing.assert_close(after, dict(own.named_buffers()), rtol=1e-11, atol=1e-12)


@rows
def test_the_meta_gradient_is_certified(name: str) -> None:
    made = case(name)
    with untouched(made.module):
        report = check_meta_gradient(
            made.problem, made.meta, made.episode,
            num_directions=made.row.num_directions, step_sizes=made.row.step_sizes, replay_constants=made.row.replay,
        )  # fmt: skip
    assert report.gradient_norm > 1e-3
    shares = {part: (tree.norm(grad) / report.gradient_norm).item() for part, grad in in_a_loop(name).grads.items()}
    unseen = {part for part, share in shares.items() if share < 1e-5}
    inert = {part for part in shares if made.row.is_inert(part)}
    assert unseen == inert, f"the loss should depend on every parameter but {inert}, not on {unseen}"


@pytest.mark.parametrize("way", WAYS)
@rows
def test_every_way_of_running_tasks_equals_the_loop(name: str, way: str) -> None:
    made, expected = case(name), in_a_loop(name)
    slow = made.row.slow_batching
    with untouched(made.module), silenced(f"There is a performance drop.*{slow}") if slow else nullcontext():
        got = WAYS[way].value_and_grad(Unrolled(), made.problem)(made.meta, made.episodes)
    assert_close(got.value, expected.value, tolerance=1e-10)
    assert_close(got.grads, expected.grads, tolerance=1e-10)
    torch.testing.assert_close(
        got.grads, expected.grads, rtol=1e-8, atol=1e-12 * max(1.0, tree.norm(expected.grads).item())
    )
    torch.testing.assert_close(got.aux.buffers, expected.aux.buffers, rtol=1e-10, atol=1e-12)


UNCERTIFIED = {
    "Container": "no longer a module that is used",
    "CrossMapLRN2d": "torch's older form of LocalResponseNorm",
    "DataParallel": "copies a module to devices itself",
    "Module": "abstract",
}
"""Modules of torch.nn without a row. Losses have a table of their own (tests/functional/interception)."""


def test_every_module_of_torch_has_a_row() -> None:
    used = {type(part) for name, row in ROWS.items() if not row.slow for part in case(name).module.modules()}
    seen = {base for kind in used for base in kind.__mro__} | {nn.LazyLinear}
    public = {name: kind for name, kind in vars(nn).items() if inspect.isclass(kind) and issubclass(kind, nn.Module)}
    without = {
        name for name, kind in public.items()
        if kind not in seen and not name.startswith("Lazy") and not re.search("Loss(2d)?$", name)
    }  # fmt: skip
    assert without == UNCERTIFIED.keys() - {"Module"}


class Checkpointed(nn.Module):
    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.body, self.head, self.reentrant = nn.Sequential(nn.Linear(3, 4), nn.Tanh()), nn.Linear(4, 1), reentrant

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.body, x, use_reentrant=self.reentrant))


@pytest.mark.parametrize("way", [Loop(), Vmap()])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_is_refused_with_the_fix(reentrant: bool, way) -> None:
    # What torch warns of without a transform: "Gradients will be None".
    with silenced("None of the inputs have requires_grad"):
        made = case_of(Row(lambda: Checkpointed(reentrant=reentrant)))
    with silenced("None of the inputs have requires_grad"), pytest.raises(UsageError, match="checkpoint"):
        way.value_and_grad(Unrolled(), made.problem)(made.meta, made.episodes)


_IN_BFLOAT16 = (
    "linear", "layer norm", "convolution 2d", "batch norm 2d", "LSTM", "attention", "transformer encoder",
    "activation GELU",
)  # fmt: skip


@pytest.mark.parametrize("name", _IN_BFLOAT16)
def test_bfloat16_parameters_give_the_gradient_of_float32_to_its_precision(name: str) -> None:
    # Some tens of operations follow each other, and each rounds by up to half an epsilon (2**-7 for bfloat16): errors
    # of one to five epsilons were measured, and vmap rounds in other places than the loop.
    made, grads = case(name), {}
    for dtype in (torch.float32, torch.bfloat16):
        problem, meta = problem_of(made.row, made.model.to(dtype))
        grads[dtype] = Loop().value_and_grad(Unrolled(), problem)(meta, tree.cast(made.episodes, dtype)).grads
        vmapped = Vmap().value_and_grad(Unrolled(), problem)(meta, tree.cast(made.episodes, dtype)).grads
        assert all(grad.dtype == dtype and grad.isfinite().all() for grad in grads[dtype].values())
        assert_close(vmapped, grads[dtype], tolerance=8 * torch.finfo(dtype).eps)
    error = assert_close(grads[torch.bfloat16], grads[torch.float32], tolerance=4 * torch.finfo(torch.bfloat16).eps)
    assert error > 1e-4, "it was not computed in bfloat16"


class Detached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        features = self.first(x).tanh()
        return self.second(features * features.detach())


def test_a_factor_that_is_detached_is_found() -> None:
    made = case_of(Row(Detached))
    with pytest.raises(AssertionError, match="Unrolled is wrong"):
        check_meta_gradient(made.problem, made.meta, made.episode)


def test_a_module_that_is_written_to_is_found() -> None:
    module = nn.BatchNorm1d(3)
    with pytest.raises(AssertionError, match="running_mean of the module changed"), untouched(module):
        module(torch.randn(4, 3))
    with pytest.raises(AssertionError, match=r"weight .* was written to"), untouched(module), torch.no_grad():
        module.weight.mul_(1.0)
    with pytest.raises(AssertionError, match=r"\.training of the module changed"), untouched(module):
        module.eval()
