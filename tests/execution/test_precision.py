"""Mixed precision: what stays float32, the same in every way of running tasks, and what is refused."""

import contextlib
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from problems import images
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from metalearn import UsageError, functionalize, losses, tree
from metalearn.algorithms import MAML
from metalearn.execution import Loop, Vmap, choose
from metalearn.execution.precision import in_precision, products_in
from metalearn.metagrad import ForwardMode, Stepwise, Unrolled
from metalearn.types import Aux, Episodes


def parts(norm=nn.BatchNorm2d, *, num_inner_steps: int = 2, inner_lr: float = 0.1):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), norm(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 7 * 7, 3))
    model = functionalize(net)
    maml = MAML(loss=losses.cross_entropy, inner_lr=inner_lr, num_inner_steps=num_inner_steps)
    return maml.problem(model), maml.init(model), tree.cast(images(), torch.float32)


def error(found, exact) -> float:
    found, exact = (tree.to_vector(each.grads).double() for each in (found, exact))
    return float((found - exact).norm() / exact.norm())


def test_float32_is_the_problem_as_it_is() -> None:
    problem, meta, episodes = parts()
    assert in_precision(problem, "float32") is problem
    assert in_precision(problem, "tf32") is problem
    plain = Loop().value_and_grad(Unrolled(), problem)(meta, episodes)
    named = Loop(precision="float32").value_and_grad(Unrolled(), problem)(meta, episodes)
    assert all(torch.equal(plain.grads[name], named.grads[name]) for name in meta)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, lambda width: nn.GroupNorm(2, width)])
def test_all_ways_and_strategies_take_the_derivative_of_one_function(norm) -> None:
    problem, meta, episodes = parts(norm)
    exact = Loop().value_and_grad(Unrolled(), problem)(meta, episodes)
    mixed = Loop(precision="bf16").value_and_grad(Unrolled(), problem)(meta, episodes)
    assert 1e-3 < error(mixed, exact) < 0.3
    for strategy in (Stepwise(), Stepwise(every=2)):
        other = Loop(precision="bf16").value_and_grad(strategy, problem)(meta, episodes)
        assert error(other, mixed) < 1e-5
    for execution in (Vmap(precision="bf16"), Vmap(precision="bf16", chunk_size=2)):
        other = execution.value_and_grad(Unrolled(), problem)(meta, episodes)
        # The same casts in another order of sums.
        assert error(other, mixed) < error(mixed, exact)
        assert float(other.value) == pytest.approx(float(mixed.value), rel=2e-2)


def test_forward_mode_takes_the_same_casts() -> None:
    problem, meta, episodes = parts(lambda width: nn.Identity())
    mixed, forward = (
        Loop(precision="bf16").value_and_grad(strategy, problem)(
            meta, tree.map_tensors(lambda leaf: leaf[:1], episodes)
        )
        for strategy in (Unrolled(), ForwardMode())
    )
    assert error(forward, mixed) < 0.1


def test_what_is_kept_is_float32() -> None:
    problem, meta, episodes = parts()
    seen: dict[str, set[torch.dtype]] = {"params": set(), "buffers": set()}
    inner = problem.inner_loss

    def watched(meta, params, buffers, batch, step):
        seen["params"] |= {value.dtype for value in params.values()}
        loss, aux = inner(meta, params, buffers, batch, step)
        seen["buffers"] |= {value.dtype for value in aux.buffers.values() if value.is_floating_point()}
        return loss, aux

    outcome = Vmap(precision="bf16").value_and_grad(Unrolled(), replace(problem, inner_loss=watched))(meta, episodes)
    assert seen == {"params": {torch.float32}, "buffers": {torch.float32}}
    assert outcome.value.dtype == torch.float32
    assert {value.dtype for value in outcome.grads.values()} == {torch.float32}
    assert {value.dtype for value in outcome.aux.metrics.values()} == {torch.float32}
    assert {v.dtype for v in outcome.aux.buffers.values() if v.is_floating_point()} == {torch.float32}


def test_products_are_bfloat16_and_losses_and_statistics_are_not() -> None:
    problem, meta, episodes = parts(num_inner_steps=1)
    dtypes: dict[str, torch.dtype] = {}

    def loss(meta, params, buffers, batch, step):
        x, y = batch
        hidden = F.conv2d(x, params["0.weight"])
        normed = F.batch_norm(hidden, None, None, training=True)
        logits = F.linear(normed.flatten(1), params["4.weight"])
        dtypes.update(conv=hidden.dtype, norm=normed.dtype, logits=logits.dtype, softmax=logits.log_softmax(-1).dtype)
        dtypes["cross_entropy"] = (value := F.cross_entropy(logits, y)).dtype
        dtypes["statistics"] = torch.var_mean(hidden, (0, 2, 3))[0].dtype
        return value, Aux(buffers, {})

    x, y = (leaf[0] for leaf in episodes.support)
    in_precision(replace(problem, inner_loss=loss), "bf16").inner_loss(meta, tree.select(meta, "init."), {}, (x, y), 0)
    low = {"conv", "norm", "logits"}
    assert {name for name, dtype in dtypes.items() if dtype == torch.bfloat16} == low
    assert {dtype for name, dtype in dtypes.items() if name not in low} == {torch.float32}


def test_a_trace_has_the_same_numbers() -> None:
    problem, meta, episodes = parts(lambda width: nn.GroupNorm(2, width))
    one_task = Unrolled().value_and_grad(in_precision(problem, "bf16"))
    names = list(meta)

    def tasks(values: list[torch.Tensor], x, y, x2, y2, key):
        def one(x, y, x2, y2, key):
            episode = Episodes((x, y), (x2, y2), key)
            outcome = one_task(dict(zip(names, values, strict=True)), episode)
            return outcome.value, [outcome.grads[name] for name in names]

        return torch.vmap(one)(x, y, x2, y2, key)

    given = (list(meta.values()), *episodes.support, *episodes.query, episodes.key)
    value, grads = tasks(*given)
    traced_value, traced_grads = make_fx(tasks, tracing_mode="fake")(*given)(*given)
    assert torch.equal(traced_value, value)
    for found, wanted in zip(traced_grads, grads, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_an_evaluation_is_float32() -> None:
    problem, meta, episodes = parts()
    plain, mixed = (
        way.evaluate(problem, meta, episodes, num_inner_steps=2) for way in (Vmap(), Vmap(precision="bf16"))
    )
    assert all(torch.equal(plain[name], mixed[name]) for name in plain)


def test_autocast_is_left_as_it_was() -> None:
    problem, meta, episodes = parts()
    Loop(precision="bf16").value_and_grad(Unrolled(), problem)(meta, episodes)
    assert not torch.is_autocast_enabled("cpu")


def test_refusals() -> None:
    problem, meta, episodes = parts()
    with pytest.raises(UsageError, match=r"precision='bf15' is not a precision. Did you mean 'bf16'\?"):
        Vmap(precision="bf15")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"tf32 is of CUDA devices, but this runs on the cpu"):
        choose("loop", model=nn.Linear(1, 1), device="cpu", precision="tf32")
    with pytest.raises(UsageError, match="tf32 is of CUDA devices"):
        Loop(precision="tf32").value_and_grad(Unrolled(), problem)(meta, episodes)
    with pytest.raises(UsageError, match=r"keeps the parameters in float32, but '0.weight' is torch.float64"):
        Loop(precision="bf16").value_and_grad(Unrolled(), problem)(
            tree.cast(meta, torch.float64), tree.cast(episodes, torch.float64)
        )
    assert choose("loop", model=nn.Linear(1, 1), device="cpu", precision="bf16").precision == "bf16"


def switches() -> tuple[bool, bool]:
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


def test_the_switches_of_a_gpu_are_put_back() -> None:
    before = switches()
    with products_in("tf32", torch.device("cuda")):
        assert switches() == (True, True)
    with contextlib.suppress(ZeroDivisionError), products_in("float32", torch.device("cuda")):
        assert switches() == (False, False)
        1 / 0  # noqa: B018
    assert switches() == before
    with products_in("bf16", torch.device("cpu")):
        assert switches() == before
