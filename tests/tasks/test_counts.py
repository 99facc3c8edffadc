"""Counts that are a number or a range."""

import pytest
import torch

from metalearn import random
from metalearn.errors import UsageError
from metalearn.tasks.counts import Span, span


def test_a_number_is_fixed_and_a_range_is_drawn_evenly() -> None:
    assert span("shots", 4, minimum=1) == Span(4, 4)
    assert span("shots", [2, 2], minimum=1).is_fixed
    drawn = span("shots", (2, 5), minimum=1).draw(random.key(torch.arange(8000)))
    counts = torch.bincount(drawn)
    assert counts[:2].sum() == 0
    assert len(counts) == 6
    assert ((counts[2:] - 2000).abs() < 5 * 39).all()  # standard deviation of a binomial: sqrt(8000 * 3 / 16)
    assert (span("shots", 4, minimum=1).plain(), span("shots", [1, 3], minimum=1).plain()) == (4, [1, 3])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0, "`shots` must be a whole number of at least 1, got 0"),
        ([0, 3], "`shots` must be a whole number of at least 1, got 0"),
        ([3, 1], r"is a range in the wrong order. Write \[1, 3\]"),
        ([1, 2, 3], "the lowest and the highest of a range"),
        ("ab", "the lowest and the highest of a range"),
        (1.5, "got 1.5"),
    ],
)
def test_what_is_no_count_is_refused(value: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        span("shots", value, minimum=1)  # type: ignore[arg-type]
