"""A user's Python function as a family, and what is said when it is wrong."""

import sys
from pathlib import Path

import pytest
import torch

from metalearn import random
from metalearn.errors import UsageError
from metalearn.tasks import UserFunction
from metalearn.tasks.functions.user_function import find_function, name_of

MODULE = """
import torch

VALUE = 3

def wave(x, amplitude, phase=0.0):
    return amplitude * torch.sin(x + phase)

def both(x, amplitude):
    return torch.cat([x, amplitude * x], dim=-1)

def raises(x, amplitude):
    scaled = amplitude * x
    return scaled + missing  # the user's own line

def deep(x, amplitude):
    return torch.einsum("ij", amplitude * x)

def flat(x, amplitude):
    return (amplitude * x)[..., 0]

def summed(x, amplitude):
    return (amplitude * x).sum()

def number(x, amplitude):
    return 3.0

def whole(x, amplitude):
    return (amplitude * x).long()

def pole(x, amplitude):
    return amplitude / (x - x)

def nothing():
    return 1
"""


@pytest.fixture
def my_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "my_wave_module.py"
    path.write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield path
    sys.modules.pop("my_wave_module", None)


X = torch.linspace(-5, 5, 11)[:, None].expand(3, 11, 1)
KEYS = random.key(torch.arange(3))


def evaluate(name: str) -> torch.Tensor:
    family = UserFunction(f"my_wave_module.{name}", {"amplitude": (1, 2)})
    return family.values(family.draw(KEYS), X)


def test_a_function_is_called_once_for_all_tasks_with_its_parameters(my_module: Path) -> None:
    family = UserFunction("my_wave_module.wave", {"amplitude": (0.1, 5.0), "phase": 1})
    drawn = family.draw(KEYS)
    assert {name: tuple(value.shape) for name, value in drawn.items()} == {"amplitude": (3, 1, 1), "phase": (3, 1, 1)}
    assert torch.equal(family.values(drawn, X), drawn["amplitude"] * torch.sin(X + 1))
    assert evaluate("both").shape == (3, 11, 2)
    assert family.protocol() == {
        "family": "function",
        "function": "my_wave_module.wave",
        "parameters": {"amplitude": [0.1, 5.0], "phase": [1.0, 1.0]},
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "raises",
            ["my_wave_module.raises raised NameError: name 'missing' is not defined", "return scaled + missing"],
        ),
        # The last line of the user's own, although torch raised below it.
        ("deep", ["RuntimeError", 'in deep: return torch.einsum("ij", amplitude * x)']),
        ("flat", ["returned the shape [3, 11] for x of shape [3, 11, 1]", "expected [3, 11, output]"]),
        ("summed", ["returned the shape []"]),
        ("number", ["returned a float, expected a tensor of real numbers"]),
        ("whole", ["returned a torch.int64 tensor"]),
        ("pole", ["returned inf at x=[-5.0] with amplitude=1", "Narrow the ranges"]),
    ],
)
def test_its_mistakes_are_told_at_its_own_line(my_module: Path, name: str, expected: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        evaluate(name)
    text = str(caught.value)
    for part in expected:
        assert part in text
    assert "my_wave_module" in text
    assert text.count("\n") <= 1
    assert "site-packages" not in text


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wave", "has to be written module.name"),
        ("no_such_module.wave", "there is no module 'no_such_module'. It has to be installed, or lie in the current"),
        ("my_wave_module.wafe", "my_wave_module has no 'wafe'. Did you mean 'wave'"),
        ("my_wave_module.VALUE", "is a int, expected a function written in Python"),
        ("os.remove", "is a builtin_function_or_method, expected a function written in Python"),
    ],
)
def test_only_a_python_function_is_found_by_name(my_module: Path, name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        find_function(name)


def test_a_module_that_does_not_import_is_told_at_its_own_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_broken_module.py").write_text("VALUE = 1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        UsageError, match=r"importing my_broken_module raised ZeroDivisionError(.|\n)*line 1.*VALUE = 1 / 0"
    ):
        find_function("my_broken_module.wave")


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("wave", {"amplitud": 1}, "takes no parameter 'amplitud'. Did you mean 'amplitude'"),
        ("wave", {"phase": 1}, "needs 'amplitude': give its range"),
        ("wave", {"amplitude": [2, 1]}, "`parameters.amplitude` must be two numbers in order"),
        ("wave", [1, 2], "`parameters` must give a range for each name"),
        ("nothing", {}, "takes no argument"),
    ],
)
def test_parameters_are_those_that_the_function_takes(
    my_module: Path, name: str, parameters: object, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        UserFunction(f"my_wave_module.{name}", parameters)  # type: ignore[arg-type]


def test_what_is_no_function_is_refused() -> None:
    with pytest.raises(UsageError, match=r"must be a Python function or 'module\.name' of one, got 3"):
        UserFunction(3)  # type: ignore[arg-type]
    assert name_of(torch.sin).endswith("sin")


def test_a_function_with_any_keyword_takes_any_parameter() -> None:
    family = UserFunction(lambda x, **drawn: x * drawn["slope"], {"slope": 2})
    assert torch.equal(family.values(family.draw(KEYS), X), 2 * X)
