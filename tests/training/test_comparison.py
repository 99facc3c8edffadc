"""The difference of two sides: scipy's numbers where it has them, and the interval's own promise where it has none."""

import json
import math
from pathlib import Path

import pytest
import torch
from scipy import stats
from torch import Tensor

from metalearn.errors import UsageError
from metalearn.training import Results
from metalearn.training.comparison import difference, over_runs
from metalearn.training.comparison_plot import draw_comparison
from metalearn.training.comparison_report import Compared, Side
from metalearn.training.results import by_step, last_step
from metalearn.training.student import quantile, two_sided_p


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("degrees", [1, 1.5, 2, 3.7, 10, 599, 9999, 1e6])
def test_students_t_is_scipys(degrees: float) -> None:
    assert quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-8)
    for statistic in (0.0, 1e-6, 0.3, 1.0, 2.5, -6.0, 40.0):
        assert two_sided_p(statistic, degrees) == pytest.approx(2 * stats.t.sf(abs(statistic), degrees), rel=1e-7)
    assert two_sided_p(math.inf, degrees) == 0.0


def test_two_runs_are_a_paired_t_test() -> None:
    a, b = drawn(40), drawn(40, seed=1) + 0.3
    found, expected = difference(a[None], b[None], metric="accuracy"), stats.ttest_rel(a, b)
    interval = expected.confidence_interval(0.95)
    assert found.mean == pytest.approx((a - b).mean().item(), rel=1e-12)
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-8)
    assert found.ci95 == pytest.approx((interval.high - interval.low) / 2, rel=1e-8)
    assert found.degrees_of_freedom == pytest.approx(39)
    assert found.correlation == pytest.approx(stats.pearsonr(a, b).statistic, rel=1e-9)
    assert found.includes == ("episodes",)


def test_known_numbers() -> None:
    found = difference(torch.tensor([[0.5, 0.7, 0.9]]), torch.tensor([[0.4, 0.7, 0.7]]), metric="accuracy")
    # d = 0.1, 0, 0.2: deviation 0.1, t of two degrees of freedom 4.3027
    assert found.mean == pytest.approx(0.1, abs=1e-7)
    assert found.ci95 == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-6)
    assert (found.share_a_higher, found.share_equal) == (pytest.approx(2 / 3), pytest.approx(1 / 3))
    assert not found.distinguishable
    assert found.better is None


def test_seeds_without_episodes_noise_are_a_welch_test() -> None:
    a, b = drawn(4, 1), 3 * drawn(3, 1, seed=1) + 1
    found = difference(a.expand(4, 50), b.expand(3, 50), metric="loss")
    expected = stats.ttest_ind(a.flatten(), b.flatten(), equal_var=False)
    interval = expected.confidence_interval(0.95)
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-7)
    assert found.ci95 == pytest.approx((interval.high - interval.low) / 2, rel=1e-7)
    assert found.degrees_of_freedom == pytest.approx(expected.df)
    assert found.includes == ("episodes", "seeds")


def test_pairs_of_seeds_without_episodes_noise_are_a_paired_test() -> None:
    a, b = drawn(4, 1), drawn(4, 1, seed=1)
    found = difference(a.expand(4, 50), b.expand(4, 50), metric="loss", pair_seeds=True)
    assert found.p_value == pytest.approx(stats.ttest_rel(a.flatten(), b.flatten()).pvalue, rel=1e-7)
    assert found.includes == ("episodes", "pairs of seeds")
    assert found.degrees_of_freedom == 3
    with pytest.raises(UsageError, match="A has 4 runs and B 3"):
        difference(a, b[:3], metric="loss", pair_seeds=True)


def test_identical_values_differ_by_exactly_nothing() -> None:
    values = torch.rand(1, 600, generator=torch.Generator().manual_seed(0))
    found = difference(values, values.clone(), metric="accuracy")
    assert (found.mean, found.ci95, found.p_value, found.better) == (0.0, 0.0, 1.0, None)
    assert not found.distinguishable
    assert found.unpaired_ci95 is not None
    assert found.unpaired_ci95 > 0
    shifted = difference(values.double() + 0.25, values.double(), metric="accuracy")
    assert shifted.p_value is not None
    assert shifted.p_value < 1e-12


@pytest.mark.parametrize(("metric", "better"), [("accuracy", "A"), ("loss", "B"), ("ink", None)])
def test_what_is_better_depends_on_the_metric(metric: str, better: str | None) -> None:
    found = difference(drawn(1, 100) + 5, drawn(1, 100, seed=1), metric=metric)
    assert found.distinguishable
    assert found.better == better


def test_what_both_share_is_in_the_unpaired_interval_alone() -> None:
    hard = 10 * drawn(1, 500)
    found = difference(hard + drawn(1, 500, seed=1), hard + drawn(1, 500, seed=2), metric="accuracy")
    assert found.ci95 is not None
    assert found.unpaired_ci95 is not None
    assert found.unpaired_ci95 > 5 * found.ci95


def test_one_run_on_a_side_says_nothing_of_seeds() -> None:
    assert difference(drawn(3, 20), drawn(1, 20, seed=1), metric="loss").includes == ("episodes",)


def test_values_that_are_no_numbers_have_no_difference() -> None:
    values = drawn(1, 5)
    values[0, 2] = math.inf
    found = difference(values, drawn(1, 5, seed=1), metric="loss")
    assert (found.mean, found.ci95, found.p_value, found.better) == (None, None, None, None)
    assert difference(drawn(1, 1), drawn(1, 1), metric="loss").ci95 is None


@pytest.mark.parametrize(
    ("num_runs", "of_seeds", "pair_seeds"), [(3, 0.3, False), (2, 0.3, False), (3, 0.3, True), (2, 0.6, True)]
)
def test_the_interval_holds_the_truth_as_often_as_it_says(num_runs: int, of_seeds: float, pair_seeds: bool) -> None:
    """Two sides with one true mean; every run and every episode moves the values, and both together do."""
    generator, hits = torch.Generator().manual_seed(0), 0

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    for _ in range(400):
        episodes, seeds = noise(1, 60), of_seeds * noise(num_runs, 1) if pair_seeds else 0.0
        a, b = (episodes + seeds + of_seeds * noise(num_runs, 1) + noise(num_runs, 60) for _ in range(2))
        found = difference(a, b, metric="accuracy", pair_seeds=pair_seeds)
        assert found.mean is not None
        assert found.ci95 is not None
        hits += abs(found.mean) <= found.ci95
    # 95% of 400 are 380, with a deviation of 4.4; more by the part that is counted twice, but not always.
    assert 371 <= hits < 400


def test_runs_have_their_deviation() -> None:
    found = over_runs(torch.tensor([[0.5, 0.7], [0.6, 0.8], [0.7, 0.9]]))
    assert found["mean"] == pytest.approx(0.7)
    assert found["std_over_seeds"] == pytest.approx(0.1)
    assert (found["num_runs"], found["num_episodes"]) == (3, 2)
    assert found["ci95"] > 4.3 * 0.1 / math.sqrt(3)


def results(values: Tensor, **card: object) -> Results:
    measured = {"loss": -values, "accuracy": values}
    protocol = {"dataset": "made up", "episodes_seed": 0, "seed": 0, "inner_steps_test": 1, "wall_time_seconds": 1.0}
    data = {"test": last_step(measured), "test_by_step": by_step(measured), "protocol": protocol | card}
    return Results(data=data, values=measured)


def compared(**card: object) -> Compared:
    a = Side.of("A", ["runs/a"], [results(0.5 + 0.01 * drawn(30, 2))])
    b = Side.of("B", ["runs/b"], [results(0.4 + 0.01 * drawn(30, 2, seed=1), wall_time_seconds=9.0, **card)])
    return Compared.of(a, b, split="test")


def test_the_summary_says_which_is_better_and_in_what_they_differ() -> None:
    text = compared(inner_steps_test=5, model_details={"depth": 4}).summary()
    assert "accuracy A - B: +9.89%" in text
    assert "A is better" in text
    assert "after 1 and 5 inner steps" in text
    assert "model_details.depth: - | 4" in text
    assert "wall_time" not in text
    assert "The protocol cards do not differ" in compared().summary()


def test_the_file_is_strict_json_with_every_episode(tmp_path: Path) -> None:
    found = compared()
    found.save(tmp_path / "compare.json", command="python -m metalearn.compare")
    text = (tmp_path / "compare.json").read_text()
    data = json.loads(text)
    assert data["per_episode"]["accuracy"]["a"][0] == found.a.values["accuracy"][0].tolist()
    assert data["a"]["runs"][0]["protocol"]["dataset"] == "made up"
    assert data["differences"]["accuracy"]["better"] == data["differences"]["loss"]["better"] == "A"
    assert len(text.splitlines()) < 250  # 30 episodes are not 30 lines
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="can not be written"):
        found.save(tmp_path / "file" / "compare.json", command="")


@pytest.mark.parametrize("case", ["grid", "wide", "several", "constant", "infinite"])
def test_every_comparison_has_its_picture(case: str, tmp_path: Path) -> None:
    a, b = {
        "grid": ((4 * drawn(1, 40)).round() / 8, (4 * drawn(1, 40, seed=1)).round() / 8),
        "wide": (drawn(1, 200).mul(3).exp(), drawn(1, 200, seed=1).mul(3).exp()),
        "several": (drawn(3, 40), drawn(2, 40, seed=1)),
        "constant": (torch.ones(1, 5), torch.ones(1, 5)),
        "infinite": (torch.full((1, 3), math.inf), torch.ones(1, 3)),
    }[case]
    metric = "loss" if case == "wide" else "accuracy"
    found = difference(a, b, metric=metric)
    draw_comparison(a, b, found, metric=metric, title=case, path=tmp_path / "compare.png")
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
