"""The certification table of modules: every row by its name."""

from tests.zoo import (
    activations,
    attention,
    backbones,
    buffers,
    containers,
    convolutions,
    embeddings,
    normalisation,
    pooling,
    pretrained,
    recurrent,
    unusual,
)
from tests.zoo.rows import Row

_PARTS = (
    convolutions,
    normalisation,
    activations,
    pooling,
    embeddings,
    recurrent,
    attention,
    containers,
    buffers,
    unusual,
    pretrained,
    backbones,
)


def _merged() -> dict[str, Row]:
    rows: dict[str, Row] = {}
    for part in _PARTS:
        twice = rows.keys() & part.ROWS.keys()
        assert not twice, f"rows of one name: {sorted(twice)}"
        rows |= part.ROWS
    return rows


ROWS = _merged()
