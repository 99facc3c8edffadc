"""The ways to one derivative: forward mode and reverse mode, whole graphs and single steps, a loop and vmap."""

import torch
from torch import Tensor

from metalearn import tree
from metalearn.execution import Loop, Vmap
from metalearn.metagrad import Stepwise, Unrolled
from metalearn.metagrad.forward import pushforward
from metalearn.problem import Problem
from metalearn.testing.gradients import dot, unit_direction
from metalearn.testing.transformations.subject import Subject, loss_of, regression, told
from metalearn.testing.transformations.trial import Trial, gradient
from metalearn.types import Aux, Episodes, Tensors

_AGREED = 1e-10
_FLOOR = 1e-3


def forward_error(trial: Trial) -> float:
    """The largest difference of a row's forward derivative to its reverse one; raises AssertionError above 1e-10."""
    exact, origin, errors = gradient(trial), trial.origin(), {}
    for index, (row, names) in enumerate(trial.rows().items()):
        direction = {**origin, **unit_direction({name: origin[name] for name in names}, trial.subject.key(index))}
        with told(f"the forward derivative by {row}", "an operation that has no forward derivative in torch."):
            got = pushforward(trial, (origin,), (direction,))[1].item()
        norm = tree.norm([exact[name] for name in names]).item()
        errors[row] = abs(got - dot(exact, direction)) / max(norm, _FLOOR)
    return _agreed(errors, "forward mode and reverse mode differ in the derivative of")


def strategies_error(subject: Subject, num_steps: int) -> float:
    """The largest difference of Stepwise and of vmap to Unrolled in a loop; raises AssertionError above 1e-10."""
    problem, meta, episodes = _problem(subject, num_steps)
    expected = Loop().value_and_grad(Unrolled(), problem)(meta, episodes).grads
    errors = {}
    for name, way, strategy in (("Stepwise()", Loop(), Stepwise()), ("Vmap()", Vmap(), Unrolled())):
        cause = "what only plain autograd can run: an in-place write, a branch on a value, a hook."
        with told(f"the meta-gradient with {name}", cause):
            got = way.value_and_grad(strategy, problem)(meta, episodes).grads
        for entry, value in expected.items():
            error = tree.norm([got[entry] - value]) / tree.norm([value]).clamp_min(_FLOOR)
            errors[f"{entry} with {name}"] = error.item()
    return _agreed(errors, "strategies differ from Unrolled() in a loop in the gradient of")


def _agreed(errors: dict[str, float], what: str) -> float:
    wrong = [f"{name} by {error:.1e}" for name, error in errors.items() if not error <= _AGREED]
    if wrong:
        raise AssertionError(
            f"{what} {', '.join(wrong)} (tolerance {_AGREED:.0e}). Likely cause: a torch.autograd.Function whose "
            "derivatives are not one another's, or torch.no_grad() and .detach() where a value depends on them."
        )
    return max(errors.values())


def _problem(subject: Subject, num_steps: int) -> tuple[Problem, Tensors, Episodes]:
    """The same inner loop as a `Problem` whose meta-parameters are the start and the hyper-parameters, of two tasks."""

    def inner_loss(
        meta: Tensors, params: Tensors, buffers: Tensors, batch: tuple[Tensor, Tensor], step: int
    ) -> tuple[Tensor, Aux]:
        return loss_of(params, buffers, batch), Aux(buffers)

    def outer_loss(
        meta: Tensors, params: Tensors, buffers: Tensors, episode: Episodes, step: int
    ) -> tuple[Tensor, Aux]:
        return loss_of(params, buffers, (episode.query[0], episode.query[1])), Aux(buffers)

    problem = Problem(
        init=lambda meta, episode: (tree.select(meta, "params."), {}),
        inner_loss=inner_loss,
        optimizer=lambda meta: subject.optimizer(tree.select(meta, "hyper.")),
        outer_loss=outer_loss,
        num_inner_steps=num_steps,
    )
    meta = {**tree.prefixed(subject.params, "params."), **tree.prefixed(subject.hypers, "hyper.")}
    tasks = [Episodes(*regression(subject, tag)) for tag in range(2)]
    return problem, meta, tree.joined(tasks, torch.stack)
