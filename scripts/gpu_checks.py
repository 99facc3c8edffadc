"""What is checked on a GPU, each against the CPU: `scripts/gpu_suite.py` runs them all."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from metalearn import Episodes, FunctionalModel, functionalize, losses, models, optim, random, tree
from metalearn.algorithms import MAML
from metalearn.execution import Loop, Vmap
from metalearn.metagrad import Stepwise, Strategy, Truncated, Unrolled, plan
from metalearn.metagrad.memory import peak_bytes
from metalearn.problem import Problem
from metalearn.tasks import ClassificationSource, Sinusoid
from metalearn.testing import assert_close
from metalearn.types import Tensors


def check_episodes(device: torch.device) -> dict[str, Any]:
    """The same episodes on the device as on the CPU, bit for bit where they are gathered and not computed."""
    images = torch.randint(0, 256, (30, 12, 1, 9, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pictures = ClassificationSource(
        name="check", classes={"train": images}, ways=[2, 5], shots=[1, 4], query_shots=2, rotations=True
    )
    there = tree.to(pictures.to(device).episodes("train", range(64)), "cpu")
    for one, other in zip(tree.tensors(there), tree.tensors(pictures.episodes("train", range(64))), strict=True):
        assert torch.equal(one, other), "an image episode differs between the device and the CPU"
    waves = Sinusoid()
    error = assert_close(
        tree.to(waves.to(device).episodes("train", range(64)).support, "cpu"),
        waves.episodes("train", range(64)).support,
        tolerance=1e-6,
    )
    return {"images": "equal", "sinusoid relative error": error}


def check_random(device: torch.device) -> dict[str, Any]:
    """The same bits, and the same choices by rank and by Floyd's algorithm."""
    keys = random.key(torch.arange(100))
    for draw in (
        lambda keys: random.bits(keys, (50,)),
        lambda keys: random.choose(keys, 40, 7),
        lambda keys: random.choose(keys, 9000, 7),
    ):
        assert torch.equal(draw(keys.to(device)).cpu(), draw(keys)), (
            "random draws differ between the device and the CPU"
        )
    return {"draws": "equal"}


def check_gradients(device: torch.device) -> dict[str, Any]:
    """Meta-gradients in float64: the device against the CPU, vmap against the loop, padded and not."""
    images = torch.rand(12, 8, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    sizes: dict[str, dict[str, Any]] = {"fixed": {"ways": 4, "shots": 2}, "padded": {"ways": [2, 4], "shots": [1, 3]}}
    errors = {}
    for name, size in sizes.items():
        source = ClassificationSource(name="check", classes={"train": images}, query_shots=2, **size)
        expected = _gradient("cpu", Loop(), source)
        for way in (Loop(), Vmap(), Vmap(chunk_size=4)):
            errors[f"{name}, {way!r}"] = assert_close(_gradient(device, way, source), expected, tolerance=1e-9)
    return errors


def check_strategies(device: torch.device) -> dict[str, Any]:
    """Exact strategies on the device against Unrolled on the CPU; their peak memory there, and what a plan predicts."""
    images = torch.rand(12, 8, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    source = ClassificationSource(name="check", classes={"train": images}, query_shots=2, ways=4, shots=2)
    expected = _gradient("cpu", Loop(), source, Unrolled())
    found: dict[str, Any] = {}
    for strategy in (Unrolled(), Stepwise(), Stepwise(every="sqrt"), Stepwise(mode="forward"), Truncated(2)):
        for way in (Loop(), Vmap()):
            got = _gradient(device, way, source, strategy)
            found[f"{strategy!r}, {way!r}"] = assert_close(got, expected, tolerance=1e-9)
    problem, meta, episodes = _problem(device, source, num_inner_steps=40)
    episode = tree.entry(episodes, 0)
    for row in plan(problem, meta, episode, strategies=[Unrolled(), Stepwise(), Stepwise(every="sqrt")]).rows:
        gradient = row.strategy.value_and_grad(problem)
        measured = peak_bytes(lambda gradient=gradient: gradient(meta, episode), device)  # type: ignore[misc]
        found[f"{row.name}, 40 steps"] = {"predicted_bytes": row.peak_bytes, "measured_bytes": measured}
        assert row.peak_bytes is not None, row.refused
        assert abs(row.peak_bytes - measured) <= 0.2 * measured, f"{row.name}: {row.peak_bytes} of {measured} bytes"
    return found


def _problem(
    device: torch.device | str, source: ClassificationSource, num_inner_steps: int
) -> tuple[Problem, Tensors, Episodes]:
    torch.manual_seed(0)
    module = models.Conv4(input_shape=(1, 16, 16), num_outputs=4, filters=8).double()
    maml = MAML(loss=losses.cross_entropy, inner_lr=0.1, num_inner_steps=num_inner_steps)
    model = functionalize(module).to(device)
    episodes = tree.cast(source.to(device).episodes("train", range(6)), torch.float64)
    return maml.problem(model), maml.init(model), episodes


def _gradient(
    device: torch.device | str, way: Loop | Vmap, source: ClassificationSource, strategy: Strategy | None = None
) -> Any:
    problem, meta, episodes = _problem(device, source, num_inner_steps=2)
    found = way.value_and_grad(strategy or Unrolled(), problem)(meta, episodes)
    return tree.to((found.value, found.grads), "cpu")


def check_certified(device: torch.device) -> dict[str, Any]:
    """Finite differences on the device itself."""
    from metalearn.testing import check_meta_gradient

    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3, bias=False), torch.nn.BatchNorm2d(4), torch.nn.Tanh(), torch.nn.Flatten(),
        torch.nn.Dropout(0.3), torch.nn.Linear(4 * 36, 3),
    ).double()  # fmt: skip
    model = functionalize(module).to(device)
    generator = torch.Generator().manual_seed(2)
    sets = [
        (torch.randn(6, 1, 8, 8, dtype=torch.float64, generator=generator).to(device), torch.arange(6).to(device) % 3)
        for _ in range(2)
    ]
    maml = MAML(loss=losses.cross_entropy, inner_lr=0.3, num_inner_steps=3)
    report = check_meta_gradient(
        maml.problem(model), maml.init(model), Episodes(*sets, key=random.key(0, device=device))
    )
    return {"error": report.error}


class _Last(torch.nn.Module):
    """A recurrent layer's output after the last step."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)[0][:, -1]


MODULES: dict[str, Callable[[], list[torch.nn.Module]]] = {
    # cuDNN's recurrent kernels have no second derivative, nor have the fused kernels of attention.
    "lstm": lambda: [_Last(torch.nn.LSTM(8, 8, num_layers=2, dropout=0.2, bidirectional=True, batch_first=True))],
    "gru": lambda: [_Last(torch.nn.GRU(8, 16, batch_first=True))],
    "attention": lambda: [
        torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True),
        torch.nn.Flatten(),
        torch.nn.Linear(8 * 8, 16),
    ],
    "convolution": lambda: [
        torch.nn.Unflatten(1, (1, 8)),
        torch.nn.Conv2d(1, 4, 3),
        torch.nn.BatchNorm2d(4),
        torch.nn.Tanh(),
        torch.nn.ConvTranspose2d(4, 1, 3),
        torch.nn.Flatten(),
        torch.nn.Linear(64, 16),
    ],
}


def check_modules(device: torch.device) -> dict[str, Any]:
    """Second-order gradients of modules whose fused kernels have none: device against CPU, vmap against the loop."""
    return {name: max(_module_errors(layers, device)) for name, layers in MODULES.items()}


def _module_errors(layers: Callable[[], list[torch.nn.Module]], device: torch.device) -> list[float]:
    torch.manual_seed(0)
    model = functionalize(torch.nn.Sequential(*layers(), torch.nn.Linear(16, 3)).double())
    generator = torch.Generator().manual_seed(3)
    sets = [
        (torch.randn(3, 5, 8, 8, dtype=torch.float64, generator=generator), torch.arange(5).remainder(3).expand(3, 5))
        for _ in range(2)
    ]
    episodes = Episodes(*sets, random.key(torch.arange(3)))
    maml = MAML(loss=losses.cross_entropy, inner_lr=0.3, num_inner_steps=2)

    def gradient(place: torch.device | str, way: Loop | Vmap) -> Any:
        there = model.to(place)
        outcome = way.value_and_grad(Unrolled(), maml.problem(there))(maml.init(there), tree.to(episodes, place))
        return tree.to((outcome.value, outcome.grads), "cpu")

    expected = gradient("cpu", Loop())
    return [assert_close(gradient(device, way), expected, tolerance=1e-9) for way in (Loop(), Vmap())]


def check_optimizers(device: torch.device) -> dict[str, Any]:
    """Every optimizer in float64: its steps, and their derivative by its rate, on the device against the CPU."""
    return {
        name: assert_close(_steps_and_slope(name, device), _steps_and_slope(name, "cpu"), tolerance=1e-9)
        for name in (*optim.FAMILY, "noisy")
    }


def _noisy(rate: torch.Tensor) -> optim.GradientTransformation:
    return optim.chain(optim.add_noise(rate, key=3), optim.clip_by_norm(1.0), optim.lamb(rate))


def _steps_and_slope(name: str, device: torch.device | str) -> Any:
    generator = torch.Generator().manual_seed(0)
    # More than are joined in one, a matrix among them for those that take nothing else, and a row that never moves.
    start = {name: torch.randn(size, 3, dtype=torch.float64, generator=generator).to(device) for name, size in
             (("small", 4), ("other", 5), ("large", 6000))}  # fmt: skip

    def after(rate: torch.Tensor) -> tuple[torch.Tensor, Tensors]:
        optimizer, params = {**optim.FAMILY, "noisy": _noisy}[name](rate), start
        state = optimizer.init(params)
        for _ in range(5):
            grads = {key: torch.where(value > 1.5, 0.0, value**3 - 0.1) for key, value in params.items()}
            params, _, state = optimizer.step(grads, state, params)
        return torch.stack([value.sum() for value in params.values()]).sum(), params

    slope, params = torch.func.grad(after, has_aux=True)(torch.tensor(0.01, dtype=torch.float64, device=device))
    return tree.to((slope, params), "cpu")


def check_compiled(device: torch.device) -> dict[str, Any]:
    """Compiled meta-gradients in float64 against the eager loop on the CPU; on a GPU no call waits for the device."""
    is_gpu = device.type == "cuda"
    ways = [Vmap(compiled="pieces")]
    if is_gpu:  # the tests compile enough on a CPU
        ways += [Vmap(compiled="whole"), Loop(compiled="pieces"), Vmap(compiled="pieces", cuda_graphs=True)]
    errors = {f"MLP, {way!r}": _compiled_error(*_mlp(), way, device) for way in ways}
    if is_gpu:
        for way in (
            Vmap(compiled="pieces"),
            Vmap(compiled="pieces", convolutions="products"),
            Vmap(compiled="pieces", convolutions="products", cuda_graphs=True),
            Vmap(compiled="whole", convolutions="products", cuda_graphs=True),
        ):
            errors[f"Conv-4, {way!r}"] = _compiled_error(*_conv4(), way, device)
    return errors


def _mlp() -> tuple[FunctionalModel, MAML, Episodes]:
    torch.manual_seed(0)
    model = functionalize(models.MLP(input_shape=(1,), num_outputs=1, hidden=(8,)).double())
    maml = MAML(loss=losses.mean_squared_error, inner_lr=0.1, num_inner_steps=2)
    return model, maml, tree.cast(Sinusoid().episodes("train", range(4)), torch.float64)


def _conv4() -> tuple[FunctionalModel, MAML, Episodes]:
    torch.manual_seed(0)
    model = functionalize(models.Conv4(input_shape=(1, 16, 16), num_outputs=4, filters=8).double())
    images = torch.rand(12, 8, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    source = ClassificationSource(name="check", classes={"train": images}, query_shots=2, ways=4, shots=2)
    maml = MAML(loss=losses.cross_entropy, inner_lr=0.1, num_inner_steps=2)
    return model, maml, tree.cast(source.episodes("train", range(4)), torch.float64)


def _compiled_error(
    model: FunctionalModel, maml: MAML, episodes: Episodes, way: Loop | Vmap, device: torch.device
) -> float:
    """At other parameters and tasks than those that it was made with: nothing of these may be left in the code."""
    meta = maml.init(model)
    moved = {name: value * 1.1 for name, value in meta.items()}
    later = tree.map_tensors(lambda leaf: leaf.flip(0), episodes)
    expected = Loop().value_and_grad(Unrolled(), maml.problem(model))(moved, later).grads
    gradient = way.value_and_grad(Unrolled(), maml.problem(model.to(device)))
    gradient(tree.to(meta, device), tree.to(episodes, device))
    there, given = tree.to(moved, device), tree.to(later, device)
    with _no_waiting(device):
        found = gradient(there, given).grads
    return assert_close(tree.to(found, "cpu"), expected, tolerance=1e-9)


@contextmanager
def _no_waiting(device: torch.device) -> Iterator[None]:
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    except RuntimeError as error:
        raise AssertionError(f"a compiled call waits for the device: {error}") from error
    finally:
        torch.cuda.set_sync_debug_mode("default")


CHECKS: dict[str, Callable[[torch.device], dict[str, Any]]] = {
    "random": check_random,
    "episodes": check_episodes,
    "gradients": check_gradients,
    "certified": check_certified,
    "strategies": check_strategies,
    "modules": check_modules,
    "optimizers": check_optimizers,
    "compiled": check_compiled,
}


def run_checks(device: torch.device) -> dict[str, Any]:
    """Every check: what it measured, or the sentence that it failed with."""
    found: dict[str, Any] = {}
    for name, check in CHECKS.items():
        start = time.monotonic()
        try:
            found[name] = {"passed": True, **check(device)}
        except AssertionError as error:
            found[name] = {"passed": False, "error": str(error)}
        print(f"check {name}: {found[name]} ({time.monotonic() - start:.1f} s)", flush=True)
    return found
