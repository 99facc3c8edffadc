"""Student's t distribution, which neither numpy nor torch has: the factor of an interval, and a p-value."""

import math

_MOST_TERMS = 500
_CLOSE = 1e-15


def two_sided_p(statistic: float, degrees_of_freedom: float) -> float:
    """The probability of a t at least as far from 0, I_x(df / 2, 1 / 2) with x = df / (df + t²).

    Args:
        statistic: t.
        degrees_of_freedom: above 0, not necessarily whole.

    Example:
        >>> round(two_sided_p(4.302653, 2.0), 6)
        0.05
    """
    square = statistic * statistic
    if math.isinf(square):
        return 0.0
    return _incomplete_beta(
        degrees_of_freedom / 2,
        0.5,
        x=degrees_of_freedom / (degrees_of_freedom + square),
        complement=square / (degrees_of_freedom + square),
    )


def quantile(degrees_of_freedom: float, *, confidence: float = 0.95) -> float:
    """The t that `confidence` of the distribution lies within: 1.96 for many degrees of freedom, 12.7 for one.

    Example:
        >>> round(quantile(2.0), 4), round(quantile(599.0), 4)
        (4.3027, 1.9639)
    """
    low, high = 0.0, 1.0
    while two_sided_p(high, degrees_of_freedom) > 1 - confidence:
        high *= 2
    while True:  # bisection until the two are neighbours among the floats
        middle = (low + high) / 2
        if middle in (low, high):
            return middle
        if two_sided_p(middle, degrees_of_freedom) > 1 - confidence:
            low = middle
        else:
            high = middle


def _incomplete_beta(a: float, b: float, *, x: float, complement: float) -> float:
    """The regularised I_x(a, b); `complement` is 1 - x, given apart so that no digits of a small one are lost."""
    if x <= 0 or complement <= 0:
        return float(complement <= 0)
    scale = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(complement))
    # The fraction converges fast below the mean; above it the other tail's does: I_x(a, b) = 1 - I_{1-x}(b, a).
    if x < (a + 1) / (a + b + 2):
        return scale * _fraction(a, b, x) / a
    return 1.0 - scale * _fraction(b, a, complement) / b


def _fraction(a: float, b: float, x: float) -> float:
    """The continued fraction of I_x(a, b), DLMF 8.17.22, by Lentz's method as Thompson and Barnett changed it."""
    tiny = 1e-300  # in the place of a zero, through which the recurrence can not go
    upper, lower = 1.0, 1.0 - (a + b) * x / (a + 1)
    lower = 1.0 / (lower if abs(lower) > tiny else tiny)
    value = lower
    for m in range(1, _MOST_TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for numerator in (even, odd):
            lower = 1.0 + numerator * lower
            upper = 1.0 + numerator / upper
            lower = 1.0 / (lower if abs(lower) > tiny else tiny)
            upper = upper if abs(upper) > tiny else tiny
            value *= upper * lower
        if abs(upper * lower - 1.0) < _CLOSE:
            return value
    return value
