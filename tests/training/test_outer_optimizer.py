"""The outer optimizer as the trainer makes it: the user's, with the same bits."""

from functools import partial

import torch

from metalearn.training.meta_step import make_optimizer


def test_adam_takes_all_tensors_a_call_to_the_same_bits(make_experiment) -> None:
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in ((7, 3), (129,), (1,), (33, 17))]
    ours, plain = ([value.clone() for value in start] for _ in range(2))
    made = make_optimizer(make_experiment(), dict(enumerate(ours)))  # type: ignore[arg-type]
    assert made.param_groups[0]["foreach"] is True
    torchs = torch.optim.Adam(plain, lr=1e-2, foreach=False)
    for _ in range(50):
        for one, two in zip(ours, plain, strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            two.grad = one.grad.clone()
        made.step()
        torchs.step()
    assert all(torch.equal(*pair) for pair in zip(ours, plain, strict=True))


def test_what_the_user_chose_stays(make_experiment) -> None:
    for option in ({"foreach": False}, {"fused": True}):
        experiment = make_experiment(outer_optimizer=partial(torch.optim.Adam, lr=1e-3, **option))
        group = make_optimizer(experiment, {"w": torch.zeros(2)}).param_groups[0]
        assert {name: group[name] for name in option} == option
        assert group["foreach"] in (False, None)
    experiment = make_experiment(outer_optimizer=partial(torch.optim.SGD, lr=1e-3))
    assert make_optimizer(experiment, {"w": torch.zeros(2)}).param_groups[0]["foreach"] is None
