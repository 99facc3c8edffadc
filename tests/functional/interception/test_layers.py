"""Every layer of torch.nn under functionalize: torch's values, exact second derivatives, and vmap equal to the loop."""

import inspect
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn

from metalearn import UsageError
from scripts import layers_page
from tests.functional.interception import certify
from tests.functional.interception.layers import BY_NAME, CASES, WITHOUT_A_CASE

REFUSED = [case.name for case in CASES if case.refused]
WORKING = [case.name for case in CASES if not case.refused]
NOT_DRAWING = [name for name in WORKING if not BY_NAME[name].draws]


@pytest.mark.parametrize("name", NOT_DRAWING)
def test_values_and_first_gradients_are_torchs(name: str) -> None:
    case = BY_NAME[name]
    values, first = certify.value_error(case)
    assert values <= 1e-12
    if case.first_tolerance is None:
        assert first > 1e-3  # or else nothing differs
    else:
        assert first <= case.first_tolerance


@pytest.mark.parametrize("name", WORKING)
def test_second_derivatives_are_those_of_finite_differences(name: str) -> None:
    error, norm = certify.difference_error(BY_NAME[name])
    assert error <= 1e-6
    assert norm > 1e-3


@pytest.mark.parametrize("name", WORKING)
def test_autograd_has_the_same_second_derivatives(name: str) -> None:
    assert certify.autograd_error(BY_NAME[name]) <= 1e-10


@pytest.mark.parametrize("name", WORKING)
def test_vmap_equals_the_loop(name: str) -> None:
    case = BY_NAME[name]
    for shared in (False, True) if any(True for _ in case.module().parameters()) else (False,):
        with pytest.warns(UserWarning, match="performance drop") if case.slow else nullcontext():
            assert certify.vmap_error(case, shared=shared) <= 1e-10


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_says_why(name: str) -> None:
    subject = certify.subject_of(BY_NAME[name])
    variables, fixed, key = subject.task(0)
    with pytest.raises(UsageError, match=BY_NAME[name].refused):
        subject.call(variables, fixed, {**subject.model.buffers, "rng": key})


@pytest.mark.parametrize("name", [case.name for case in CASES if case.draws])
def test_draws_come_from_the_key_alone(name: str) -> None:
    subject = certify.subject_of(BY_NAME[name])
    variables, fixed, _ = subject.task(0)
    state = torch.get_rng_state()
    outputs = []
    for task in (0, 0, 1):
        torch.manual_seed(len(outputs))
        before = torch.get_rng_state()
        output, after = subject.call(variables, fixed, {**subject.model.buffers, "rng": subject.keys[task]})
        assert torch.equal(before, torch.get_rng_state())
        assert after["rng"] != subject.keys[task]
        outputs.append(output[0] if isinstance(output, tuple) else output)
    torch.set_rng_state(state)
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def test_no_layer_is_left_out() -> None:
    classes = {
        name for name, value in vars(nn).items() if inspect.isclass(value) and issubclass(value, nn.Module)
    } - WITHOUT_A_CASE.keys()
    assert classes - {case.layer for case in CASES} == set()


def test_the_page_of_layers_tells_what_happens() -> None:
    page = (Path(__file__).parents[3] / "docs/layers.md").read_text(encoding="utf-8")
    assert page == layers_page.page(), "run `python -m scripts.layers_page`"


def test_a_case_is_of_the_class_that_it_names() -> None:
    for case in CASES:
        if hasattr(nn, case.layer) and not case.layer.startswith("Lazy"):
            parts = [type(part) for part in case.module().modules()]
            assert getattr(nn, case.layer) in parts, case.name
