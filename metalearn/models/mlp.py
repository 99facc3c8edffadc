"""The fully connected network of the MAML paper's regression."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from metalearn.errors import UsageError, did_you_mean

INITIALISATIONS = ("torch", "maml")


class MLP(nn.Module):
    """Linear layers with ReLU between them; inputs are flattened.

    Attributes:
        features: the hidden layers, `features.0`, `features.2` … are linear.
        head: the last linear layer.

    Example:
        >>> import torch
        >>> MLP(input_shape=(1,), num_outputs=1)(torch.zeros(10, 1)).shape
        torch.Size([10, 1])
    """

    def __init__(
        self, *, input_shape: Sequence[int], num_outputs: int, hidden: Sequence[int] = (40, 40), init: str = "torch"
    ) -> None:
        """A network of these widths.

        Args:
            input_shape: the shape of one example.
            num_outputs: the width of the output.
            hidden: the widths of the hidden layers.
            init: `"torch"`, torch's default; or `"maml"`, which MAML's code takes: weights normal with standard
                deviation 0.01, truncated at two of these, and biases zero.

        Raises:
            UsageError: for a width below 1 or an unknown initialisation.
        """
        super().__init__()
        hidden = tuple(hidden)
        if any(isinstance(width, bool) or not isinstance(width, int) or width < 1 for width in (*hidden, num_outputs)):
            raise UsageError(
                f"MLP widths must be whole numbers >= 1, got hidden={list(hidden)}, outputs={num_outputs}."
            )
        if init not in INITIALISATIONS:
            raise UsageError(f"Unknown MLP init {init!r}. {did_you_mean(str(init), INITIALISATIONS)}")
        self.hidden, self.init = hidden, init
        widths = (math.prod(input_shape), *hidden)
        layers = [layer for width, wider in pairwise(widths) for layer in (nn.Linear(width, wider), nn.ReLU())]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], num_outputs)
        if init == "maml":
            self.apply(_initialise_as_maml)

    def forward(self, inputs: Tensor) -> Tensor:
        """`[example, *input_shape]` -> `[example, num_outputs]`."""
        return self.head(self.features(inputs.flatten(1)))  # type: ignore[no-any-return]

    def protocol(self) -> dict[str, Any]:
        """What somebody needs to know to compare numbers, as plain data."""
        return {"model": "mlp", "hidden": list(self.hidden), "init": self.init}


def _initialise_as_maml(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.01, a=-0.02, b=0.02)
        nn.init.zeros_(module.bias)
