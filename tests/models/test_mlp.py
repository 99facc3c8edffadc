"""The fully connected network."""

import pytest
import torch

from metalearn.errors import UsageError
from metalearn.models import MLP


def test_the_papers_network() -> None:
    model = MLP(input_shape=(1,), num_outputs=1)
    assert sum(parameter.numel() for parameter in model.parameters()) == 40 + 40 + 1600 + 40 + 40 + 1
    assert [name for name, _ in model.named_parameters()] == [
        *("features.0.weight", "features.0.bias", "features.2.weight", "features.2.bias"),
        *("head.weight", "head.bias"),
    ]


def test_it_computes_what_its_parameters_say() -> None:
    model = MLP(input_shape=(2, 3), num_outputs=4, hidden=(5,))
    inputs = torch.randn(7, 2, 3)
    weights = dict(model.named_parameters())
    hidden = (inputs.reshape(7, 6) @ weights["features.0.weight"].T + weights["features.0.bias"]).relu()
    torch.testing.assert_close(model(inputs), hidden @ weights["head.weight"].T + weights["head.bias"])


def test_without_hidden_layers_it_is_linear() -> None:
    model = MLP(input_shape=(3,), num_outputs=2, hidden=())
    x, y = torch.randn(4, 3), torch.randn(4, 3)
    torch.testing.assert_close(model(x) + model(y), model(x + y) + model(torch.zeros(4, 3)))


def test_maml_initialisation() -> None:
    torch.manual_seed(0)
    model = MLP(input_shape=(1,), num_outputs=1, hidden=(200, 200), init="maml")
    weight = model.features[2].weight
    assert float(weight.detach().abs().max()) <= 0.02
    # A normal truncated at two standard deviations keeps 0.880 of its standard deviation.
    assert float(weight.detach().std()) == pytest.approx(0.0088, rel=0.02)
    assert all(not parameter.any() for name, parameter in model.named_parameters() if name.endswith("bias"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": (40, 0)}, r"hidden=\[40, 0\]"),
        ({"init": "mlam"}, "Did you mean 'maml'"),
        ({"num_outputs": 0}, "outputs=0"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        MLP(**{"input_shape": (1,), "num_outputs": 1, **options})  # type: ignore[arg-type]
