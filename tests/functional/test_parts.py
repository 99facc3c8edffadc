"""A model without one of its parts."""

import copy
import pickle

import pytest
import torch
from torch import nn

import metalearn
from metalearn import UsageError
from metalearn.models import Conv4


def _conv4() -> metalearn.FunctionalModel:
    torch.manual_seed(0)
    return metalearn.functionalize(Conv4(input_shape=(1, 16, 16), num_outputs=5, filters=4, norm="batch_running"))


@pytest.mark.parametrize("training", [True, False])
def test_without_its_head_a_model_gives_what_the_head_is_given(training: bool) -> None:
    model = _conv4().train() if training else _conv4().eval()
    images = torch.randn(3, 1, 16, 16)
    features, after = model.without("head")(model.without("head").params, model.without("head").buffers, images)
    outputs, buffers = model(model.params, model.buffers, images)
    torch.testing.assert_close(
        nn.functional.linear(features, model.params["head.weight"], model.params["head.bias"]), outputs
    )
    torch.testing.assert_close(after, buffers)
    assert model.without("head").training == training


def test_the_module_stays_as_it_is_and_the_rest_of_its_state_is_left() -> None:
    model = _conv4()
    before = copy.deepcopy(model.module.state_dict())
    left = model.without("head")
    assert set(left.params) == {name for name in model.params if not name.startswith("head.")}
    assert left.buffers.keys() == model.buffers.keys()
    assert isinstance(model.module.head, nn.Linear)
    torch.testing.assert_close(dict(model.module.state_dict()), dict(before))
    other = model.with_buffers({**model.buffers, "features.0.norm.running_mean": torch.ones(4)})
    assert other.without("head").buffers["features.0.norm.running_mean"].tolist() == [1.0] * 4


def test_a_part_within_a_part_and_statistics_and_pickles() -> None:
    module = nn.Sequential(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), nn.Sequential(nn.ReLU(), nn.Linear(3, 4)))
    model = metalearn.functionalize(module).eval().normalising("set")
    images = torch.randn(5, 2)
    left = pickle.loads(pickle.dumps(model.without("1.1")))
    features, _ = left(left.params, left.buffers, images)
    torch.testing.assert_close(features, module.train()[1][0](module[0](images)))


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(UsageError, match=r"no submodule 'haed'.*'head'"):
        _conv4().without("haed")
    with pytest.raises(UsageError, match="no submodule ''"):
        _conv4().without("")
