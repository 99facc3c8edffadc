"""The work of `loops` in JAX and optax, jitted: the same models, written anew on the torch model's named parameters."""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from torch import Tensor, nn

from benchmarks.loops import Gradient, Work
from benchmarks.nets import Recurrent, ResNet12, Transformer
from metalearn.models import MLP, Conv4

Params = dict[str, Any]
Forward = Callable[[Params, Any], Any]

_FLAG = "--xla_cpu_multi_thread_eigen=false"
if hasattr(os, "sched_setaffinity"):
    # XLA takes as many threads as the process may use processors, when it makes its first device.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}".strip()
    _allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(_allowed)})
    jax.devices("cpu")
    os.sched_setaffinity(0, _allowed)

jax.config.update("jax_default_matmul_precision", "highest")  # on a GPU, where the default is TF32

MOST_UNROLLED = 10
"""Up to so many inner steps are written out, which runs faster; more are a `lax.scan`, which still compiles in time."""


def _linear(params: Params, name: str, x: Any) -> Any:
    return x @ params[f"{name}.weight"].T + params[f"{name}.bias"]


def _conv(params: Params, name: str, x: Any, *, stride: int = 1, padding: int = 1) -> Any:
    """Channels last: in XLA's own order on a CPU."""
    kernel = params[f"{name}.weight"].transpose(2, 3, 1, 0)
    out = lax.conv_general_dilated(
        x, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return out + params[f"{name}.bias"] if f"{name}.bias" in params else out


def _normalised(params: Params, name: str, x: Any, axes: tuple[int, ...]) -> Any:
    scaled = (x - x.mean(axes, keepdims=True)) * lax.rsqrt(x.var(axes, keepdims=True) + 1e-5)
    return scaled * params[f"{name}.weight"] + params[f"{name}.bias"]


def _batch_norm(params: Params, name: str, x: Any) -> Any:
    return _normalised(params, name, x, (0, 1, 2))


def _pooled(x: Any) -> Any:
    """2x2 max-pooling; an odd last row or column is left out, as in torch."""
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def _mlp(module: MLP) -> Forward:
    def forward(params: Params, x: Any) -> Any:
        for index in range(len(module.hidden)):
            x = jax.nn.relu(_linear(params, f"features.{2 * index}", x))
        return _linear(params, "head", x)

    return forward


def _conv4(module: Conv4) -> Forward:
    stride = 2 if module.downsampling == "stride" else 1

    def forward(params: Params, x: Any) -> Any:
        x = x.transpose(0, 2, 3, 1)
        for block in range(4):
            x = _conv(params, f"features.{block}.conv", x, stride=stride)
            x = jax.nn.relu(_batch_norm(params, f"features.{block}.norm", x))
            x = _pooled(x) if stride == 1 else x
        x = x.mean((1, 2)) if stride == 2 else x.transpose(0, 3, 1, 2).reshape(len(x), -1)
        return _linear(params, "head", x)

    return forward


def _resnet12(module: ResNet12) -> Forward:
    def residual(params: Params, name: str, x: Any) -> Any:
        out = x
        for index in range(3):
            out = _batch_norm(params, f"{name}.norms.{index}", _conv(params, f"{name}.convs.{index}", out))
            out = jax.nn.leaky_relu(out, 0.1) if index < 2 else out
        beside = _batch_norm(params, f"{name}.shortcut_norm", _conv(params, f"{name}.shortcut", x, padding=0))
        return _pooled(jax.nn.leaky_relu(out + beside, 0.1))

    def forward(params: Params, x: Any) -> Any:
        x = x.transpose(0, 2, 3, 1)
        for block in range(len(module.blocks)):
            x = residual(params, f"blocks.{block}", x)
        return _linear(params, "head", x.mean((1, 2)))

    return forward


def _recurrent(module: Recurrent) -> Forward:
    def forward(params: Params, x: Any) -> Any:
        into, back = params["lstm.weight_ih_l0"].T, params["lstm.weight_hh_l0"].T
        gates_in = x @ into + params["lstm.bias_ih_l0"] + params["lstm.bias_hh_l0"]

        def step(state: Any, of_input: Any) -> Any:
            out, cell = state
            inner, forget, new, outer = jnp.split(of_input + out @ back, 4, -1)
            cell = jax.nn.sigmoid(forget) * cell + jax.nn.sigmoid(inner) * jnp.tanh(new)
            return (jax.nn.sigmoid(outer) * jnp.tanh(cell), cell), None

        zeros = jnp.zeros((len(x), module.lstm.hidden_size), x.dtype)
        (out, _), _ = lax.scan(step, (zeros, zeros), gates_in.transpose(1, 0, 2))
        return _linear(params, "head", out)

    return forward


def _transformer(module: Transformer) -> Forward:
    heads = module.blocks[0].heads

    def layer_norm(params: Params, name: str, x: Any) -> Any:
        return _normalised(params, name, x, (-1,))

    def block(params: Params, name: str, x: Any) -> Any:
        examples, tokens, width = x.shape
        split = _linear(params, f"{name}.into", layer_norm(params, f"{name}.attended", x))
        query, key, value = split.reshape(examples, tokens, 3, heads, width // heads).transpose(2, 0, 3, 1, 4)
        weights = jax.nn.softmax(query @ key.swapaxes(-2, -1) / (width // heads) ** 0.5)
        x = x + _linear(params, f"{name}.out", (weights @ value).swapaxes(1, 2).reshape(x.shape))
        wider = jax.nn.gelu(_linear(params, f"{name}.wider", layer_norm(params, f"{name}.mixed", x)), approximate=False)
        return x + _linear(params, f"{name}.narrower", wider)

    def forward(params: Params, x: Any) -> Any:
        x = _linear(params, "embed", x) + params["positions"]
        for index in range(len(module.blocks)):
            x = block(params, f"blocks.{index}", x)
        return _linear(params, "head", layer_norm(params, "norm", x).mean(1))

    return forward


FORWARDS: dict[type[nn.Module], Callable[[Any], Forward]] = {
    MLP: _mlp, Conv4: _conv4, ResNet12: _resnet12, Recurrent: _recurrent, Transformer: _transformer,
}  # fmt: skip

LOSSES: dict[str, Callable[[Any, Any], Any]] = {
    "cross_entropy": lambda out, y: optax.softmax_cross_entropy_with_integer_labels(out, y).mean(),
    "mean_squared_error": lambda out, y: ((out - y) ** 2).mean(),
}


def gradient_of_a_task(work: Work) -> Callable[..., Any]:
    """By the start: `(start, support inputs, targets, query inputs, targets)`."""
    forward, criterion = FORWARDS[type(work.module)](work.module), LOSSES[work.loss]
    optimizer = optax.sgd(work.rate)

    def loss(params: Params, x: Any, y: Any) -> Any:
        return criterion(forward(params, x), y)

    def query_loss(start: Params, x: Any, y: Any, query_x: Any, query_y: Any) -> Any:
        def step(state: Any, _: None) -> Any:
            params, opt_state = state
            updates, opt_state = optimizer.update(jax.grad(loss)(params, x, y), opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), None

        unroll = work.num_steps if work.num_steps <= MOST_UNROLLED else 1
        began = (start, optimizer.init(start))
        (params, _), _ = lax.scan(step, began, None, length=work.num_steps, unroll=unroll)
        return loss(params, query_x, query_y)

    return jax.grad(query_loss)


def jitted(over_tasks: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Callable[[Work], Gradient]:
    """A way of JAX: `over_tasks` makes a task's gradient that of all tasks, `[task, …]`."""

    def made(work: Work) -> Gradient:
        wide = next(work.module.parameters()).dtype.itemsize == 8
        with jax.enable_x64(wide):
            start = {name: _array(value) for name, value in work.module.named_parameters()}
            data = [_array(part) for part in (*work.support, *work.query)]
        of_all = over_tasks(gradient_of_a_task(work))
        meta_gradient = jax.jit(lambda start, *data: jax.tree.map(lambda part: part.mean(0), of_all(start, *data)))

        def run() -> list[Any]:
            with jax.enable_x64(wide):
                found = jax.block_until_ready(meta_gradient(start, *data))
            return [found[name] for name in start]  # JAX sorts the names of a dict

        return run

    return made


def _array(value: Tensor) -> Any:
    array = value.detach().cpu().numpy()
    return jnp.asarray(array.astype(np.int32) if array.dtype == np.int64 else array)


by_vmap = jitted(lambda gradient: jax.vmap(gradient, in_axes=(None, 0, 0, 0, 0)))
by_map = jitted(lambda gradient: lambda start, *data: lax.map(lambda task: gradient(start, *task), tuple(data)))
