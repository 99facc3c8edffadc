"""A run whose inner optimizer is learned: it is trained, kept, tested for longer and named."""

from pathlib import Path

import torch

from metalearn import algorithms, losses, tree
from metalearn.optim.learned import LSLR
from metalearn.training import load_checkpoint, train


def test_a_run_learns_rates_and_its_card_names_them(tmp_path: Path, make_experiment) -> None:
    # The test takes more inner steps than there are rates: the last ones hold.
    algorithm = algorithms.MAML(loss=losses.mean_squared_error, inner_optimizer=LSLR(0.02, 2), num_inner_steps=2)
    card = train(make_experiment(algorithm=algorithm, num_inner_steps_eval=4), tmp_path).data["protocol"]
    assert card["inner_optimizer"] == "LearnedRates(lr=0.02, per='parameter', num_steps=2, base=sgd)"
    assert (card["inner_lr_train"], card["inner_steps_train"], card["inner_steps_test"]) == ("learned, from 0.02", 2, 4)
    rates = tree.select(load_checkpoint(tmp_path / "checkpoints" / "last").meta, "optimizer.lr.")
    assert len(rates) == 4
    assert all(value.shape == (2,) and not torch.equal(value, torch.full((2,), 0.02)) for value in rates.values())
    assert card["num_meta_parameters"] == sum(value.numel() for value in rates.values()) + 8 + 8 + 8 + 1
