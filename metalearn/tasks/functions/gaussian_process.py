"""Functions drawn from a Gaussian process, as a weighted sum of sines: one function a task, known at every point."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import ClassVar

import torch
from torch import Tensor

from metalearn import random
from metalearn.errors import UsageError, did_you_mean
from metalearn.tasks.functions.families import Range, checked_range, is_number, uniform

KERNELS = ("rbf", "matern12", "matern32", "matern52")
MOST_FUNCTIONS = 20_000
_SMOOTHNESS = {"matern12": 0.5, "matern32": 1.5, "matern52": 2.5}


@dataclass(frozen=True)
class GaussianProcess:
    r"""Draws of a Gaussian process with a stationary kernel, by Hilbert-space reduced-rank expansion.

    On the box of inputs, widened to half-width $L$, the process is a sum of the Laplacian's eigenfunctions that are
    zero at the box's border, weighted by the kernel's spectral density $S$:

    .. math:: f(x) = \sum_j \sqrt{S(\omega_j)} \, w_j \prod_a L^{-1/2} \sin(\omega_{j_a} (x_a + L)),
        \quad \omega_{j_a} = \frac{\pi j_a}{2 L}, \ w_j \sim N(0, 1)

    $L$ and the number of sines follow from `tolerance`: on `x_range`, the covariance of any two points differs from
    the kernel's by at most `tolerance * scale**2`. Half of that is for the border (the images of a point mirrored in it
    stay beyond the kernel's reach), half for the frequencies above the last (their share of the kernel's spectrum).
    Outside `x_range` the functions go on, but are no draws of this process.

    Attributes:
        kernel: `"rbf"` (squared exponential), or `"matern12"`, `"matern32"`, `"matern52"` of smoothness 1/2, 3/2, 5/2.
        length_scale: the kernel's length, in units of x; or lowest and highest, of which each task draws one.
        scale: the standard deviation of the function's values; or lowest and highest.
        x_range: lowest and highest input, alike in every dimension.
        input_dim: the inputs of the function.
        tolerance: the largest error of a covariance, in units of the variance.

    Example:
        >>> family = GaussianProcess("rbf", length_scale=0.5)
        >>> family.num_functions, round(family.half_width, 2)
        (23, 5.87)
        >>> family.values(family.draw(random.key(torch.arange(3))), torch.zeros(3, 7, 1)).shape
        torch.Size([3, 7, 1])

    Reference:
        Solin and Särkkä, "Hilbert space methods for reduced-rank Gaussian process regression", Statistics and
        Computing 30, 2020, arXiv:1401.5508.
    """

    name: ClassVar[str] = "gaussian_process"
    kernel: str = "rbf"
    length_scale: Range = 1.0
    scale: Range = 1.0
    x_range: Range = (-5.0, 5.0)
    input_dim: int = 1
    tolerance: float = 0.01

    def __post_init__(self) -> None:
        if self.kernel not in KERNELS:
            raise UsageError(f"Unknown kernel {self.kernel!r}. {did_you_mean(str(self.kernel), KERNELS)}")
        for name in ("length_scale", "scale"):
            object.__setattr__(self, name, checked_range(name, getattr(self, name), above=0))
        object.__setattr__(self, "x_range", checked_range("x_range", self.x_range))
        if not is_number(self.tolerance) or not 0 < self.tolerance < 1:
            raise UsageError(f"`tolerance` must be a number between 0 and 1, such as 0.01, got {self.tolerance!r}.")
        if self.num_functions**self.input_dim > MOST_FUNCTIONS:
            raise UsageError(
                f"A Gaussian process with kernel={self.kernel}, length_scale={self._bounds('length_scale')[0]:g} on"
                f" x_range={list(self._bounds('x_range'))} needs {self.num_functions}**{self.input_dim} functions, more"
                f" than {MOST_FUNCTIONS}. Take a larger length_scale or tolerance, a smoother kernel or fewer inputs."
            )

    @cached_property
    def half_width(self) -> float:
        """Half the side of the box on whose border the functions are zero."""
        low, high = self._bounds("x_range")
        reach = _first_below(lambda r: correlation(self.kernel, r), self.tolerance / (4 * self.input_dim))
        return (high - low) / 2 + reach * self._bounds("length_scale")[1] / 2

    @cached_property
    def num_functions(self) -> int:
        """How many sines there are in each dimension."""
        # A sine squared is at most twice its mean, and a frequency is lost if any one of its components is too high.
        share = self.tolerance / (2 * self.input_dim * 2**self.input_dim)
        highest = _first_below(lambda w: spectral_tail(self.kernel, w), share) / self._bounds("length_scale")[0]
        return max(1, math.ceil(highest * 2 * self.half_width / math.pi))

    def draw(self, keys: Tensor) -> Tensor:
        """The weights of the products of sines, `[task, function, …]` with one axis a dimension."""
        shape = (1,) * self.input_dim
        length = uniform(random.fold_in(keys, 0), self.length_scale, shape)
        scale = uniform(random.fold_in(keys, 1), self.scale, shape)
        weights = random.normal(random.fold_in(keys, 2), (self.num_functions,) * self.input_dim)
        squares = torch.zeros_like(weights[:1])
        for axis in range(self.input_dim):
            along = [-1 if each == axis else 1 for each in range(self.input_dim)]
            squares = squares + self._frequencies(weights).square().reshape(along)
        return scale * spectral_density(self.kernel, squares, length, self.input_dim).sqrt() * weights

    def values(self, drawn: Tensor, x: Tensor) -> Tensor:
        """See `FunctionFamily.values`, of `input_dim` inputs and one output."""
        if x.shape[-1] != self.input_dim:
            raise UsageError(f"This Gaussian process has {self.input_dim} inputs, got x of {x.shape[-1]}.")
        low, high = self._bounds("x_range")
        from_border = x - (low + high) / 2 + self.half_width
        sines = torch.sin(from_border[..., None] * self._frequencies(x)) / math.sqrt(self.half_width)
        found = torch.einsum("tpi,ti...->tp...", sines[:, :, 0], drawn.to(x.dtype))
        for axis in range(1, self.input_dim):
            found = torch.einsum("tpi,tpi...->tp...", sines[:, :, axis], found)
        return found[..., None]

    def _frequencies(self, like: Tensor) -> Tensor:
        numbers = torch.arange(1, self.num_functions + 1, dtype=like.dtype, device=like.device)
        return numbers * (math.pi / (2 * self.half_width))

    def _bounds(self, name: str) -> tuple[float, float]:
        low, high = getattr(self, name)
        return low, high


def correlation(kernel: str, distance: float) -> float:
    """The kernel of variance 1 at a distance in length scales."""
    if kernel == "rbf":
        return math.exp(-(distance**2) / 2)
    r = math.sqrt(2 * _SMOOTHNESS[kernel]) * distance
    return {"matern12": 1.0, "matern32": 1 + r, "matern52": 1 + r + r**2 / 3}[kernel] * math.exp(-r)


def spectral_density(kernel: str, squares: Tensor, length_scale: Tensor, input_dim: int) -> Tensor:
    """The kernel's spectral density at squared angular frequencies, for variance 1."""
    if kernel == "rbf":
        peak = (math.sqrt(2 * math.pi) * length_scale) ** input_dim
        return peak * torch.exp(-squares * length_scale**2 / 2)
    nu, half = _SMOOTHNESS[kernel], input_dim / 2
    constant = (4 * math.pi) ** half * math.gamma(nu + half) * (2 * nu) ** nu / math.gamma(nu)
    density: Tensor = constant * length_scale**input_dim * (2 * nu + squares * length_scale**2) ** -(nu + half)
    return density


def spectral_tail(kernel: str, frequency: float) -> float:
    """The share of the spectrum, along one axis, above an angular frequency in units of 1 / length scale.

    Along an axis the spectrum of the squared exponential is a normal distribution, and that of a Matérn kernel of
    smoothness nu Student's t with 2 nu degrees of freedom, in however many dimensions.
    """
    if kernel == "rbf":
        return math.erfc(frequency / math.sqrt(2))
    degrees = round(2 * _SMOOTHNESS[kernel])
    t = frequency / math.sqrt(degrees)
    middle = math.atan(t)
    if degrees > 1:
        middle += t / (1 + t**2) * (1 if degrees == 3 else 1 + 2 / (3 * (1 + t**2)))
    return 1 - 2 / math.pi * middle


def _first_below(decreasing: Callable[[float], float], level: float) -> float:
    """Where a function that falls from 1 to 0 reaches `level`, by bisection."""
    high = next(2.0**power for power in count() if decreasing(2.0**power) < level)
    low = 0.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if decreasing(middle) < level else (middle, high)
    return high
