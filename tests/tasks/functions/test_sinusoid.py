"""The sine waves of the MAML paper."""

import hashlib
import math

import pytest
import torch

from metalearn.errors import UsageError
from metalearn.tasks import Sinusoid


def test_shapes_and_ranges() -> None:
    episodes = Sinusoid(shots=5, query_shots=7).episodes("train", range(400))
    assert episodes.support[0].shape == episodes.support[1].shape == (400, 5, 1)
    assert episodes.query[0].shape == episodes.query[1].shape == (400, 7, 1)
    x, y = episodes.query
    assert x.dtype == y.dtype == torch.float32
    assert -5 <= float(x.min()) < -4.9
    assert 4.9 < float(x.max()) <= 5
    assert 4.5 < float(y.abs().max()) <= 5


def test_targets_are_the_true_function_at_the_inputs() -> None:
    source = Sinusoid()
    episodes = source.episodes("val", [9, 4], seed=2)
    for x, y in (episodes.support, episodes.query):
        assert torch.equal(source.true_function("val", [9, 4], x, seed=2), y)
    grid = torch.linspace(-5, 5, 50)[:, None]
    assert source.true_function("val", [9, 4], grid, seed=2).shape == (2, 50, 1)


def test_amplitudes_and_phases_are_uniform_on_the_papers_ranges() -> None:
    waves = Sinusoid().true_function("train", range(5000), torch.tensor([[0.0], [math.pi / 2]]))
    minus_sine, cosine = waves[:, 0, 0], waves[:, 1, 0]  # -A sin(phase), A cos(phase)
    assert (minus_sine <= 0).all(), "a phase in 0 … pi is subtracted"
    amplitude, phase = torch.hypot(minus_sine, cosine), torch.atan2(-minus_sine, cosine)
    for values, low, high in ((amplitude, 0.1, 5.0), (phase, 0.0, math.pi)):
        uniform = (values - low) / (high - low)
        assert -1e-5 < float(uniform.min()) < 0.01
        assert 0.99 < float(uniform.max()) < 1 + 1e-5
        assert float(uniform.mean()) == pytest.approx(0.5, abs=5 / math.sqrt(12 * 5000))
        assert float(uniform.var()) == pytest.approx(1 / 12, abs=0.005)
    assert abs(float(torch.corrcoef(torch.stack([amplitude, phase]))[0, 1])) < 5 / math.sqrt(5000)


def test_episodes_are_a_pure_function_of_split_index_and_seed() -> None:
    source = Sinusoid()
    whole = source.episodes("train", range(20), seed=1)
    part = Sinusoid().episodes("train", torch.tensor([17, 2]), seed=1)
    assert torch.equal(whole.support[1][[17, 2]], part.support[1])
    assert torch.equal(whole.query[0][[17, 2]], part.query[0])
    others = [("test", 0, 1), ("train", 0, 2), ("train", 1, 1)]
    for split, index, seed in others:
        assert not torch.equal(source.episodes(split, [index], seed=seed).support[1][0], whole.support[1][0])


def test_support_and_query_points_differ_and_more_query_shots_keep_the_wave() -> None:
    few, many = Sinusoid(shots=5, query_shots=5), Sinusoid(shots=5, query_shots=50)
    episode = few.episodes("train", [0])
    assert not torch.isin(episode.query[0], episode.support[0]).any()
    x = torch.zeros(1, 1)
    assert torch.equal(few.true_function("train", [0], x), many.true_function("train", [0], x))


def test_to_moves_every_tensor() -> None:
    source = Sinusoid()
    moved = source.to("meta").episodes("train", [0, 1])
    assert {tensor.device.type for tensor in (*moved.support, *moved.query, moved.key)} == {"meta"}
    assert source.episodes("train", [0]).support[0].device.type == "cpu"


@pytest.mark.parametrize(
    ("options", "checksum"),
    [
        ({}, "4b4883acf307ae33204ccec2ba44cefbef18bff463bc6ac0dbfa1ba033f7139e"),
        (
            {"shots": 5, "query_shots": 3, "amplitude": (1, 2), "phase": (0.5, 0.6), "x_range": (-1, 3)},
            "b9c087d3258a5769543c8d0414e2602a59d7c1e2e7548687f0c51ec5d5937640",
        ),
    ],
)
def test_the_episodes_of_published_results_stay_as_they_are(options: dict[str, object], checksum: str) -> None:
    digest = hashlib.sha256()
    for split, seed in (("train", 0), ("val", 7), ("test", 123456789)):
        episodes = Sinusoid(**options).episodes(split, [0, 1, 5, 99, 10**6], seed=seed)  # type: ignore[arg-type]
        for tensor in (*episodes.support, *episodes.query, episodes.key):
            digest.update(tensor.contiguous().numpy().tobytes())
    assert digest.hexdigest() == checksum


def test_protocol() -> None:
    card = Sinusoid(shots=5, query_shots=5).protocol()
    assert (card["dataset"], card["shots"], card["amplitude"]) == ("sinusoid", 5, [0.1, 5.0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shots": 0}, "`shots`"),
        (
            {"amplitude": (5.0, 0.1)},
            r"`amplitude` must be two numbers in order, such as \[0.1, 5.0\], got \(5.0, 0.1\)",
        ),
        ({"phase": (1.0,)}, "`phase`"),
        ({"phase": 1.0}, "`phase` must be two numbers"),
        ({"x_range": 3}, "`x_range`"),
        ({"x_range": (0, math.inf)}, "`x_range`"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Sinusoid(**options)  # type: ignore[arg-type]


def test_unknown_split_is_refused() -> None:
    with pytest.raises(UsageError, match="Known: 'test', 'train', 'val'"):
        Sinusoid().episodes("xyz", [0])
