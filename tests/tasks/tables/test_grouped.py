"""Episodes of groups that differ in size and in the classes that they have."""

import pytest
import torch

from metalearn import Episodes, algorithms, functionalize, losses, tree
from metalearn.errors import UsageError
from metalearn.execution import Vmap
from metalearn.metagrad import Unrolled
from metalearn.tasks.checks import batch_findings
from metalearn.tasks.padding import unpadded
from metalearn.tasks.tables.grouped import GroupedSource
from metalearn.testing import assert_close

# Group 0 has all three classes, group 1 the first two, group 2 the last two; 6 rows of each.
CELLS = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 1), (2, 2)]
GROUPS = torch.tensor([group for group, _ in CELLS]).repeat_interleave(6)
LABELS = torch.tensor([label for _, label in CELLS]).repeat_interleave(6)
ORDER = torch.randperm(len(GROUPS), generator=torch.Generator().manual_seed(0))


def source(**changes: object) -> GroupedSource:
    rows = torch.stack([GROUPS, LABELS, torch.arange(len(GROUPS))], dim=1).double() + 1
    options: dict[str, object] = {
        "name": "clinic",
        "kind": "classification",
        "features": rows[ORDER],
        "targets": LABELS[ORDER],
        "groups": GROUPS[ORDER],
        "splits": {"train": [0, 1], "test": [2]},
        "shots": 2,
        "query_shots": 3,
        "group_names": ["anna", "ben", "carl"],
        "label_names": ["low", "mid", "high"],
    }
    return GroupedSource(**(options | changes))  # type: ignore[arg-type]


def test_classes_that_a_group_lacks_are_masked_out() -> None:
    clinic = source()
    for split, lacks in (("train", {1: 2}), ("test", {2: 0})):
        episodes = clinic.episodes(split, range(50))
        assert batch_findings(clinic, episodes, num_tasks=50) == []
        for (inputs, targets, present), each in ((episodes.support, 2), (episodes.query, 3)):
            assert inputs.shape == (50, 3 * each, 3)
            for task in range(50):
                real = present.examples[task]
                rows, labels = inputs[task][real], targets[task][real]
                group = int(rows[0, 0]) - 1
                here = [label for label in range(3) if label != lacks.get(group)]
                assert (rows[:, 0] == group + 1).all()
                assert torch.equal(rows[:, 1].long() - 1, labels)
                assert labels.tolist() == [label for label in here for _ in range(each)]
                assert present.outputs[task].tolist() == [label in here for label in range(3)]
                assert not inputs[task][~real].any()
                assert (targets[task][~real] == -100).all()


def test_support_and_query_share_no_row_and_every_row_is_drawn() -> None:
    clinic = source()
    episodes = clinic.episodes("train", range(400))
    seen: set[int] = set()
    for task in range(400):
        used = [
            each[0][task][each[2].examples[task]][:, 2].long().tolist() for each in (episodes.support, episodes.query)
        ]
        assert not set(used[0]) & set(used[1])
        seen |= set(used[0])
    assert seen == {index + 1 for index in range(len(GROUPS)) if GROUPS[index] < 2}


def test_groups_that_all_have_all_classes_are_not_padded() -> None:
    clinic = source(splits={"train": [0], "test": [0]})
    assert len(clinic.episodes("train", [0]).support) == len(clinic.episodes("train", [0]).query) == 2


def test_an_episode_depends_on_its_index_alone() -> None:
    whole, part = source().episodes("train", range(20)), source().episodes("train", torch.tensor([17, 2]))
    for one, other in zip((*whole.support[:2], *whole.query[:2]), (*part.support[:2], *part.query[:2]), strict=True):
        assert torch.equal(one[[17, 2]], other)
    assert not torch.equal(source().episodes("train", range(20), seed=1).support[0], whole.support[0])


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_a_range_of_shots_is_padded(kind: str) -> None:
    values = {"targets": LABELS[ORDER, None].float() + 1, "kind": "regression"} if kind == "regression" else {}
    clinic = source(shots=(1, 3), **values)
    episodes = clinic.episodes("train", range(300))
    assert batch_findings(clinic, episodes, num_tasks=300) == []
    inputs, targets, present = episodes.support
    ways = present.outputs.sum(1) if kind == "classification" else 1
    shots = present.examples.sum(1) / ways
    assert set(shots.tolist()) == {1.0, 2.0, 3.0}
    if kind == "regression":
        assert len(episodes.query) == 2
        assert torch.equal(targets[..., 0][present.examples], inputs[..., 1][present.examples])
        assert not targets[~present.examples].any()


def test_features_are_shifted_in_their_own_precision() -> None:
    stamps = 1.6e9 + torch.arange(len(GROUPS), dtype=torch.float64)[:, None]
    shift, factor = stamps.mean(0), torch.tensor([0.5], dtype=torch.float64)
    clinic = source(features=stamps, shift=shift, factor=factor)
    inputs, _, present = clinic.episodes("train", range(20)).support
    expected = ((stamps - shift) * factor).float()
    assert torch.isin(inputs[present.examples], expected).all()
    assert inputs.dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"shots": 4},
            r"need 7 rows, and class 'low' of group 'anna' of clinic \(split 'train'\) has 6.*on_small_group=skip",
        ),
        (
            {"shots": 4, "on_small_group": "skip"},
            "need 7 rows of each of 2 classes, and no group of clinic in split 'train'",
        ),
        ({"on_small_group": "skp"}, "Unknown `on_small_group` 'skp'. Did you mean 'skip'"),
        ({"targets": torch.zeros_like(LABELS), "label_names": ["low"]}, "has 1 class of rows, expected 2 or more"),
        ({"targets": torch.where(GROUPS == 1, 0, LABELS)[ORDER]}, "Group 'ben' .* has rows of the class 'low' alone"),
        ({"splits": {"train": [0], "test": []}}, "no group of clinic in split 'test'"),
        ({"shots": 0}, "`shots`"),
    ],
)
def test_groups_that_are_too_small_are_told(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        source(**changes)


def test_small_groups_are_left_out_and_counted() -> None:
    few = torch.cat([torch.arange(36), torch.tensor([36])])  # group 2 keeps one row of class 2
    rows = torch.arange(len(GROUPS))[few].double()[:, None]
    options = {"features": rows, "targets": LABELS[few], "groups": GROUPS[few], "on_small_group": "skip"}
    clinic = source(**options, splits={"train": [0, 2], "test": [1]})
    assert clinic.group_names == {"train": ("anna",), "test": ("ben",)}
    assert clinic.protocol()["small_groups_left_out"] == {"train": 1, "test": 0}


def test_a_class_that_is_masked_out_is_as_if_the_model_had_no_such_output() -> None:
    clinic = source(splits={"train": [0, 1, 2], "test": [2]})
    episodes = tree.cast(clinic.episodes("train", range(12)), torch.float64)
    model = functionalize(torch.nn.Linear(3, 3).double())

    def problem(loss: losses.Loss):
        maml = algorithms.MAML(loss=loss, inner_lr=0.01, num_inner_steps=2)
        return maml.problem(model), maml.init(model)

    whole = Vmap().value_and_grad(Unrolled(), problem(losses.cross_entropy)[0])(
        problem(losses.cross_entropy)[1], episodes
    )
    values, grads = [], []
    for task in range(12):
        one = tree.map_tensors(lambda leaf, task=task: leaf[task], episodes)
        here = torch.nonzero(one.support[2].outputs).flatten()

        def own(outputs: torch.Tensor, targets: torch.Tensor, here: torch.Tensor = here):
            return losses.cross_entropy(outputs[:, here], torch.searchsorted(here, targets))

        alone = Episodes(unpadded(one.support), unpadded(one.query), one.key)
        outcome = Unrolled().value_and_grad(problem(own)[0])(problem(own)[1], alone)
        values.append(outcome.value)
        grads.append(outcome.grads)
    assert {len(row.nonzero()) for row in episodes.support[2].outputs} == {2, 3}
    assert_close(whole.value, torch.stack(values).mean(), tolerance=1e-12)
    assert_close(whole.grads, {n: torch.stack([g[n] for g in grads]).mean(0) for n in grads[0]}, tolerance=1e-10)
