"""The normalisation layers that a model is built with, by name."""

from collections.abc import Callable, Sequence

from torch import nn

from metalearn.errors import UsageError, did_you_mean

NUM_GROUPS = 8
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": lambda filters: nn.BatchNorm2d(filters, track_running_stats=False),
    "batch_running": nn.BatchNorm2d,
    "layer": lambda filters: nn.GroupNorm(1, filters),
    "group": lambda filters: nn.GroupNorm(NUM_GROUPS, filters),
    "instance": lambda filters: nn.InstanceNorm2d(filters, affine=True),
    "none": lambda filters: nn.Identity(),
}


def check_option(model: str, option: str, value: object, known: Sequence[str]) -> None:
    """Refuses a name that is not among those known.

    Raises:
        UsageError: with the names that are closest.
    """
    if value not in known:
        raise UsageError(f"Unknown {model} {option} {value!r}. {did_you_mean(str(value), known)}")


def check_filters(filters: int | Sequence[int], *, blocks: int, norm: str) -> tuple[int, ...]:
    """The channels of each block, given as one number for all or as a list.

    Raises:
        UsageError: not whole numbers of at least 1, not one for each block, or no multiples of the groups.
    """
    one = isinstance(filters, int)
    widths = (filters,) * blocks if isinstance(filters, int) else tuple(filters)
    if any(isinstance(width, bool) or not isinstance(width, int) or width < 1 for width in widths):
        raise UsageError(f"`filters` must be a whole number of at least 1, or {blocks} of them, got {filters!r}.")
    if len(widths) != blocks:
        raise UsageError(f"`filters` must be one number, or one for each of the {blocks} blocks, got {list(widths)}.")
    if norm == "group" and any(width % NUM_GROUPS for width in widths):
        raise UsageError(
            f"norm='group' has {NUM_GROUPS} groups, so `filters` must be a multiple of {NUM_GROUPS}, got"
            f" {filters if one else list(widths)}."
        )
    return widths


def check_image_shape(model: str, input_shape: Sequence[int]) -> tuple[int, int, int]:
    """(channels, height, width) of one example.

    Raises:
        UsageError: the examples are no images.
    """
    if len(input_shape) != 3:
        raise UsageError(
            f"{model} takes images [channel, height, width], got examples of shape {list(input_shape)}."
            " For vectors use model=mlp."
        )
    channels, height, width = input_shape
    return channels, height, width
