"""What state outside the model makes easy: networks that make networks, and many branches from one state."""

from itertools import permutations

import pytest
import torch
from torch import Tensor, nn

from metalearn import Aux, Episodes, Problem, UsageError, adapt, ensembles, functionalize, optim, random, tree
from metalearn.execution import Loop, Vmap
from metalearn.metagrad import Unrolled
from metalearn.testing import assert_close, check_meta_gradient

D = torch.float64


def _waves(num_tasks: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings `[task, 2]` (height and phase), inputs `[example, 1]`, targets `[task, example, 1]`."""
    embeddings = random.uniform(random.key(0), (num_tasks, 2), dtype=dtype) * torch.tensor([2.0, 3.0], dtype=dtype)
    x = torch.linspace(-2, 2, 12, dtype=dtype)[:, None]
    return embeddings, x, embeddings[:, None, :1] * torch.sin(x + embeddings[:, None, 1:])


def _hypernetwork(dtype: torch.dtype = torch.float32):
    torch.manual_seed(0)
    target = functionalize(nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)).to(dtype))
    size = tree.to_vector(target.params).numel()
    return target, nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, size)).to(dtype)


def _mean_loss(target, vectors: Tensor, x: Tensor, y: Tensor) -> Tensor:
    made = tree.from_vector(vectors, target.params)
    outputs = [target(params, target.buffers, x)[0] for params in ensembles.unstack(made)]
    return (torch.stack(outputs) - y).square().mean()


def test_a_hypernetwork_is_trained_end_to_end() -> None:
    target, hyper = _hypernetwork()
    embeddings, x, y = _waves(6, torch.float32)
    optimizer = torch.optim.Adam(hyper.parameters(), lr=1e-2)
    losses = []
    for _ in range(200):
        optimizer.zero_grad()
        loss = _mean_loss(target, hyper(embeddings), x, y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 50
    vectors = hyper(embeddings).detach()
    outputs, _ = ensembles.evaluate(target, tree.from_vector(vectors, target.params), target.buffers, x)
    assert (outputs - y).square().mean().item() == pytest.approx(_mean_loss(target, vectors, x, y).item(), rel=1e-4)


def test_the_gradient_of_a_hypernetwork_is_that_of_finite_differences() -> None:
    target, hyper = _hypernetwork(D)
    embeddings, x, y = _waves(2, D)
    weights = dict(hyper.named_parameters())

    def loss_of(embeddings: Tensor, *values: Tensor) -> Tensor:
        named = dict(zip(weights, values, strict=True))
        return _mean_loss(target, torch.func.functional_call(hyper, named, embeddings), x, y)

    assert torch.autograd.gradcheck(loss_of, (embeddings.requires_grad_(), *weights.values()))


def _adapted_embedding() -> tuple[Problem, dict[str, Tensor], Episodes]:
    """The inner loop adapts what a hypernetwork sees; the outer one learns its weights, the start and the rate."""
    target, hyper = _hypernetwork(D)
    maker = functionalize(hyper)
    _, x, y = _waves(3, D)

    def loss_on(meta: dict[str, Tensor], params: dict[str, Tensor], examples: tuple[Tensor, Tensor]) -> Tensor:
        vector, _ = maker(tree.select(meta, "hyper."), maker.buffers, params["embedding"])
        output, _ = target(tree.from_vector(vector, target.params), target.buffers, examples[0])
        return (output - examples[1]).square().mean()

    problem = Problem(
        init=lambda meta, episode: ({"embedding": meta["embedding"]}, {}),
        inner_loss=lambda meta, params, buffers, batch, step: (loss_on(meta, params, batch), Aux(buffers)),
        optimizer=lambda meta: optim.sgd(meta["lr"]),
        outer_loss=lambda meta, params, buffers, episode, step: (loss_on(meta, params, episode.query), Aux(buffers)),
        num_inner_steps=4,
    )
    start = {"embedding": torch.zeros(2, dtype=D), "lr": torch.tensor(0.3, dtype=D)}
    x = x.expand(3, 12, 1)
    episodes = Episodes((x[:, ::2], y[:, ::2]), (x[:, 1::2], y[:, 1::2]))
    return problem, {**tree.prefixed(maker.params, "hyper."), **start}, episodes


def test_a_hypernetwork_adapted_in_an_inner_loop_has_the_gradient_of_finite_differences() -> None:
    problem, meta, episodes = _adapted_embedding()
    report = check_meta_gradient(problem, meta, tree.map_tensors(lambda leaf: leaf[0], episodes))
    assert report.error <= 1e-6
    assert report.gradient_norm > 1e-2


def test_a_hypernetwork_adapted_in_an_inner_loop_is_the_same_for_all_tasks_at_once() -> None:
    problem, meta, episodes = _adapted_embedding()
    loop, vmap = (way.value_and_grad(Unrolled(), problem)(meta, episodes) for way in (Loop(), Vmap()))
    assert_close(vmap.grads, loop.grads, tolerance=1e-10)
    after = Vmap().evaluate(problem, meta, episodes, num_inner_steps=8)["loss"].mean(0)
    assert after[8] < after[0]


@pytest.mark.parametrize("num_leading", [0, 1, 2])
def test_a_vector_holds_the_parameters_and_gives_them_back(num_leading: int) -> None:
    like = {"w": torch.zeros(2, 3), "scalar": torch.zeros(()), "b": torch.zeros(4)}
    lead = (5, 7)[:num_leading]
    torch.manual_seed(0)
    named = {name: torch.randn((*lead, *value.shape)) for name, value in like.items()}
    vector = tree.to_vector(named, num_leading=num_leading)
    assert vector.shape == (*lead, 11)
    again = tree.from_vector(vector, like)
    assert list(again) == list(like)
    assert all(torch.equal(again[name], value) for name, value in named.items())
    if not num_leading:
        assert torch.equal(vector, torch.nn.utils.parameters_to_vector(named.values()))


def test_a_vector_of_another_length_is_refused() -> None:
    with pytest.raises(UsageError, match=r"shape \[4\], but its last axis has to be 5"):
        tree.from_vector(torch.zeros(4), {"w": torch.zeros(5)})
    with pytest.raises(UsageError, match=r"shape \[\]"):
        tree.from_vector(torch.zeros(()), {"w": torch.zeros(1)})


def _branches():
    """One state that requires grad, and a branch from it by optimizer and by task: each gives a scalar."""
    torch.manual_seed(0)
    model = functionalize(nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 1)).double())
    params = {name: value.clone().requires_grad_() for name, value in model.params.items()}
    rate = torch.tensor(0.05, dtype=D, requires_grad=True)
    tasks = [(torch.randn(6, 3, dtype=D), torch.randn(6, 1, dtype=D)) for _ in range(2)]

    def loss_fn(params, buffers, batch):
        output, buffers = model(params, buffers, batch[0])
        return (output - batch[1]).square().mean(), buffers

    def branch(optimizer, task) -> Tensor:
        adapted = adapt(loss_fn, params, model.buffers, task, optimizer=optimizer, num_inner_steps=3)
        return loss_fn(adapted.params, adapted.buffers, task)[0]

    optimizers = [optim.sgd(rate, momentum=0.9), optim.adam(rate), optim.sgd(0.1)]
    kinds = [(optimizer, task) for optimizer in optimizers for task in tasks]
    return branch, kinds, [*params.values(), rate]


def _grads_of(loss: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    for leaf in leaves:
        leaf.grad = None
    loss.backward()
    return [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]


def test_branches_from_one_state_do_not_block_each_other() -> None:
    branch, kinds, leaves = _branches()
    alone = [_grads_of(branch(*kind), leaves) for kind in kinds]
    assert all(any(grad.abs().max() > 1e-6 for grad in grads) for grads in alone)
    for order in ((0, 1, 2, 3, 4, 5), (5, 4, 3, 2, 1, 0), (3, 0, 5, 1, 4, 2)):
        losses = [branch(*kind) for kind in kinds]  # all branches first, then backward: no retain_graph
        for index in order:
            for got, expected in zip(_grads_of(losses[index], leaves), alone[index], strict=True):
                assert torch.equal(got, expected)


def test_a_branch_from_the_middle_of_another() -> None:
    w = torch.linspace(-1, 1, 7, dtype=D, requires_grad=True)

    def loss_fn(params, buffers, target):
        return (params["w"] * target).square().sum()

    def both() -> list[Tensor]:
        middle = adapt(loss_fn, {"w": w}, {}, 0.3, optimizer=optim.sgd(0.1), num_inner_steps=2)
        ends = [
            adapt(loss_fn, middle.params, {}, target, optimizer=optimizer, num_inner_steps=2)
            for optimizer, target in ((optim.sgd(0.1), 0.5), (optim.adam(0.1), 0.7))
        ]
        return [end.params["w"].square().sum() for end in ends]

    alone = [torch.autograd.grad(both()[index], w)[0] for index in range(2)]
    for order in permutations(range(2)):
        ends = both()
        # What branches share, their common past, is gone through once by each: that alone needs retain_graph.
        for position, index in enumerate(order):
            (got,) = torch.autograd.grad(ends[index], w, retain_graph=position == 0)
            assert torch.equal(got, alone[index])
