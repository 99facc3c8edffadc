"""The expansion of a Gaussian process against the kernel that it stands for."""

import math

import pytest
import torch

from metalearn import random
from metalearn.errors import UsageError
from metalearn.tasks import GaussianProcess
from metalearn.tasks.functions.gaussian_process import KERNELS, correlation, spectral_density, spectral_tail

CASES = [
    ("rbf", 0.5, 1, 0.01),
    ("rbf", 3.0, 1, 0.01),
    ("rbf", 1.0, 1, 1e-4),
    ("rbf", 2.0, 2, 0.01),
    ("rbf", 4.0, 3, 0.05),
    ("matern12", 1.0, 1, 0.02),
    ("matern32", 0.5, 1, 0.01),
    ("matern32", 3.0, 2, 0.05),
    ("matern52", 0.5, 1, 0.01),
    ("matern52", 2.0, 2, 0.01),
]


@pytest.mark.parametrize(("kernel", "length_scale", "input_dim", "tolerance"), CASES)
def test_the_covariance_is_the_kernels_within_the_tolerance(
    kernel: str, length_scale: float, input_dim: int, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Weights that are all one leave the square roots of the variances: the covariance follows without any sampling.
    monkeypatch.setattr(random, "normal", lambda key, shape: torch.ones(*key.shape, *shape, dtype=torch.float64))
    family = GaussianProcess(
        kernel, length_scale=length_scale, scale=3.0, x_range=(-4.0, 6.0), input_dim=input_dim, tolerance=tolerance
    )
    deviations = family.draw(random.key(torch.zeros(1, dtype=torch.int64))).flatten()
    axis = torch.linspace(-4, 6, {1: 41, 2: 8, 3: 4}[input_dim], dtype=torch.float64)
    x = torch.cartesian_prod(*[axis] * input_dim).reshape(-1, input_dim)
    shape = (family.num_functions,) * input_dim
    one_each = torch.diag(deviations).reshape(-1, *shape)
    functions = family.values(one_each, x.expand(len(one_each), *x.shape))[..., 0]
    covariance = functions.T @ functions
    distance = torch.cdist(x, x) / length_scale
    exact = 9 * torch.tensor([[correlation(kernel, r) for r in row] for row in distance.tolist()], dtype=torch.float64)
    error = float((covariance - exact).abs().max()) / 9
    assert error < tolerance
    assert error > tolerance / 20, "far more functions than the tolerance asks for"


@pytest.mark.parametrize("kernel", KERNELS)
def test_draws_have_the_variance_and_the_correlation_of_the_kernel(kernel: str) -> None:
    family = GaussianProcess(kernel, length_scale=2.0, scale=3.0)
    x = torch.tensor([[-5.0], [-1.0], [1.0], [5.0]])
    values = family.values(family.draw(random.key(torch.arange(4000))), x.expand(4000, 4, 1))[..., 0].double()
    covariance = values.T @ values / 4000
    exact = torch.tensor([[9 * correlation(kernel, abs(float(a - b)) / 2) for a in x] for b in x], dtype=torch.float64)
    # The standard deviation of an estimated covariance is at most sqrt(2 / n) of the variance.
    assert float((covariance - exact).abs().max()) < 9 * (0.01 + 5 * math.sqrt(2 / 4000))
    assert float(values.mean(0).abs().max()) < 5 * 3 / math.sqrt(4000)


def test_length_scales_and_scales_of_a_range_differ_between_tasks() -> None:
    family = GaussianProcess(length_scale=(0.2, 4.0), scale=(0.01, 10.0))
    x = torch.linspace(-5, 5, 400)[:, None].expand(300, 400, 1)
    values = family.values(family.draw(random.key(torch.arange(300))), x)[..., 0]
    size = values.std(1)
    assert float(size.max() / size.min()) > 20
    turns = ((values[:, 1:] - values[:, :-1]).sign().diff(dim=1) != 0).sum(1)
    assert int(turns.max()) > 20
    assert int(turns.min()) < 4


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_spectrum_is_the_kernels_transform(kernel: str) -> None:
    frequency = torch.linspace(-2000, 2000, 2_000_001, dtype=torch.float64)
    density = spectral_density(kernel, frequency.square(), torch.tensor(0.7, dtype=torch.float64), 1)
    for distance in (0.0, 0.5, 2.0):
        value = torch.trapezoid(density * torch.cos(frequency * distance), frequency) / (2 * math.pi)
        assert float(value) == pytest.approx(
            correlation(kernel, distance / 0.7), abs=2e-3 if kernel == "matern12" else 1e-6
        )
    above = frequency.abs() > 3 / 0.7
    share = torch.trapezoid(torch.where(above, density, 0.0), frequency) / torch.trapezoid(density, frequency)
    assert float(share) == pytest.approx(spectral_tail(kernel, 3.0), abs=2e-3)


def test_a_line_through_several_dimensions_has_the_spectrum_of_one() -> None:
    for kernel in KERNELS:
        other = torch.linspace(-3000, 3000, 600_001, dtype=torch.float64)
        length = torch.tensor(1.0, dtype=torch.float64)
        two = spectral_density(kernel, 2.0**2 + other.square(), length, 2)
        along = torch.trapezoid(two, other) / (2 * math.pi)
        assert float(along) == pytest.approx(
            float(spectral_density(kernel, torch.tensor(4.0, dtype=torch.float64), length, 1)), rel=2e-3
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": "rfb"}, "Unknown kernel 'rfb'. Did you mean 'rbf'"),
        ({"length_scale": 0}, "`length_scale` must be above 0"),
        ({"length_scale": (2, 1)}, "`length_scale` must be two numbers in order"),
        ({"scale": -1.0}, "`scale` must be above 0"),
        ({"tolerance": 0}, "`tolerance` must be a number between 0 and 1"),
        ({"tolerance": "x"}, "`tolerance`"),
        ({"kernel": "matern12", "input_dim": 2}, r"\*\*2 functions, more than 20000. Take a larger length_scale"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        GaussianProcess(**options)  # type: ignore[arg-type]


def test_x_has_the_inputs_of_the_process() -> None:
    family = GaussianProcess(length_scale=3.0, input_dim=2)
    with pytest.raises(UsageError, match="has 2 inputs, got x of 1"):
        family.values(family.draw(random.key(torch.arange(2))), torch.zeros(2, 3, 1))
