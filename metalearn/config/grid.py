"""What a sweep's overrides span: the values of a grid, or the space of a study."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException

from metalearn.errors import UsageError
from metalearn.sweeps import Choices, Interval, Space


@dataclass(frozen=True)
class Swept:
    """The overrides of a sweep.

    Attributes:
        fixed: those that every point has.
        swept: those that have several values, by key.
    """

    fixed: tuple[str, ...]
    swept: Mapping[str, Override]

    @property
    def keys(self) -> tuple[str, ...]:
        """What is swept, as it is called in tables."""
        return tuple(self.swept)

    def grid(self) -> Iterator[dict[str, str]]:
        """Every combination: key -> the text of its value, the last key running fastest.

        Raises:
            UsageError: a key has no list of values.
        """
        lists = []
        for key, override in self.swept.items():
            if not override.is_discrete_sweep():
                raise UsageError(
                    f"{override.input_line} has no end of values. For a grid list them ({key}=0.01,0.1); to search "
                    "the interval give a number of trials: hydra.sweeper.num_trials=20."
                )
            lists.append([(key, text) for text in override.sweep_string_iterator()])
        for combination in itertools.product(*lists):
            yield dict(combination)

    def space(self) -> Space:
        """The same for a study.

        Raises:
            UsageError: nothing is swept, or an interval is none.
        """
        if not self.swept:
            raise UsageError("A study needs something to search, such as inner.lr='tag(log, interval(0.01, 1))'.")
        return {key: _dimension(key, override) for key, override in self.swept.items()}

    def overrides(self, texts: Mapping[str, str]) -> list[str]:
        """The overrides of a point, from the texts of its values by key."""
        swept = [f"{self.swept[key].get_key_element()}={text}" for key, text in texts.items()]
        return [*self.fixed, *swept]


def read_sweep(params: Mapping[str, Any], arguments: Sequence[str], *, loader: ConfigLoader) -> Swept:
    """Reads a sweep's `params` and the command line, which wins where both name a key."""
    texts = [*(f"{key}={value}" for key, value in params.items()), *arguments]
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(texts)
    latest = {override.get_key_element(): override for override in parsed}
    fixed = tuple(str(each.input_line) for each in latest.values() if not each.is_sweep_override())
    swept = {each.key_or_group: each for each in latest.values() if each.is_sweep_override()}
    return Swept(fixed, swept)


def value_of(text: str) -> Any:
    """The value that an override's text stands for, as plain data.

    Example:
        >>> value_of("0.10"), value_of("maml"), value_of("[8,8]")
        (0.1, 'maml', [8, 8])
    """
    return OverridesParser.create().parse_override(f"x={text}").value()


def text_of(value: Any) -> str:
    """The text of a proposed value; what is no number is a text already."""
    return repr(value) if isinstance(value, (int, float)) else str(value)


def _dimension(key: str, override: Override) -> Interval | Choices:
    value = override.value()
    log = "log" in getattr(value, "tags", ())
    if isinstance(value, IntervalSweep):
        assert value.start is not None
        assert value.end is not None
        _check_interval(key, value.start, value.end, log=log)
        return Interval(value.start, value.end, log=log)
    if isinstance(value, RangeSweep) and not value.shuffle:
        numbers = list(value.range())
        if not numbers:
            raise UsageError(f"{override.input_line} has no values.")
        if value.step > 0 and not (log and value.step != 1):
            _check_interval(key, numbers[0], numbers[-1], log=log)
            return Interval(numbers[0], numbers[-1], log=log, step=None if log else value.step)
    assert isinstance(value, (ChoiceSweep, RangeSweep)) or override.is_discrete_sweep()
    try:
        return Choices(tuple(_choice(text) for text in override.sweep_string_iterator()))
    except HydraException as error:
        raise UsageError(" ".join(str(error).split())) from None


def _check_interval(key: str, low: float, high: float, *, log: bool) -> None:
    if low > high or (log and low <= 0):
        above = "above 0 " if log else ""
        raise UsageError(f"{key}: expected an interval {above}with its smaller end first, got {low} to {high}.")


def _choice(text: str) -> Any:
    value = value_of(text)
    # Numbers stay numbers in the study's file; the rest is kept as it was written.
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else text
