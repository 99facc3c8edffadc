"""Writes docs/layers.md: what happens to every layer of torch.nn under functionalize.

    python -m scripts.layers_page

Each case of tests/functional/interception is called once, and the functions of torch that are replaced in it are noted
down. Whether the gradients are right is what tests/functional/interception/test_layers.py shows.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from metalearn.functional import forms
from metalearn.functional.interception import mode, writing
from tests.functional.interception import certify
from tests.functional.interception.cases import Case
from tests.functional.interception.layers import CASES, WITHOUT_A_CASE

PAGE = Path(__file__).parents[1] / "docs/layers.md"

INTRO = """# Layers

What `metalearn.functionalize` makes of every layer of `torch.nn`, and of some functions beside them. Each row is
certified in float64 (`tests/functional/interception/test_layers.py`): values and first gradients equal torch's, the
gradient of a gradient equals finite differences to 1e-6 of its norm, and `vmap` equals the loop to 1e-10, with
parameters of each task's own and with shared ones.

- **as in torch**: torch's own functions are called.
- **replaced**: while the model is called, the functions named are replaced by ones with the same values, because
  torch's have no second derivative, or a wrong one, or vmap can not run them. Your module is not changed.
- **keyed**: draws come from the key in `buffers["rng"]`, so they are the same in a loop, under vmap and in a
  recomputation. They are other numbers than torch's generator gives. Functions that draw (`torch.randint`,
  `torch.normal`, `x.exponential_()`, `torch.multinomial`, the initialisers of `torch.nn.init` …) are keyed in a
  forward of your own too, and so are the `torch.distributions` that come down to them; under vmap give some of these
  `validate_args=False`. Draws by rejection (gamma, beta, Poisson, binomial) and a `generator=` are refused.
- **refused**: the call raises a `UsageError` that says what to use instead.

| layer | what happens | note |
|---|---|---|
"""

# Replacements that hand some calls on to torch as they are.
_MATTERS: dict[Any, Callable[[dict[str, Any]], bool]] = {
    F.interpolate: lambda given: given["mode"] == "nearest-exact",
    F.dropout: lambda given: given["training"] and given["p"] > 0,
}


def main() -> None:
    """Writes the page."""
    PAGE.write_text(page(), encoding="utf-8")


def page() -> str:
    """The page as it should be."""
    by_layer: dict[str, list[Case]] = {}
    for case in CASES:
        by_layer.setdefault(case.layer, []).append(case)
    rows = {layer: _row(cases) for layer, cases in by_layer.items()}
    rows |= {layer: ("", note) for layer, note in WITHOUT_A_CASE.items()}
    ordered = sorted(rows.items(), key=lambda item: item[0].lower())
    return INTRO + "".join(f"| {layer} | {what} | {note} |\n" for layer, (what, note) in ordered)


def _row(cases: list[Case]) -> tuple[str, str]:
    replaced: dict[str, None] = {}
    what: set[str] = set()
    notes: dict[str, None] = {}
    for case in cases:
        special = ", ".join(case.name.split(", ")[1:])
        if case.refused:
            what.add("refused")
            notes[case.differs or f"refused with {special}"] = None
            continue
        found = replaced_in(case)
        what.add("keyed" if case.draws else "replaced" if found else "as in torch")
        replaced |= dict.fromkeys(found)
        if case.differs:
            about = special.split(" of ")[0].split(", ")[-1]
            notes[f"{about}: {case.differs}" if about else case.differs] = None
        if case.slow:
            notes[f"{special + ': ' if special else ''}under vmap one task after another in part"] = None
    order = [name for name in ("as in torch", "replaced", "keyed", "refused") if name in what]
    if len(order) > 1 and order[0] == "as in torch":
        order = order[1:]
    calls = [", ".join(f"`{name}`" for name in replaced)] if replaced else []
    return ", ".join(order), "; ".join([*calls, *notes])


def replaced_in(case: Case) -> list[str]:
    """The functions of torch that are replaced in a call of the case's layer."""
    subject = certify.subject_of(case)
    variables, fixed, key = subject.task(0)
    with _noting() as found:
        subject.call(variables, fixed, {**subject.model.buffers, "rng": key})
    parts = [*subject.model.module.modules()]
    formed = [f"{base.__name__}.{name}" for base, name in forms._FORMS if any(isinstance(part, base) for part in parts)]
    return [*dict.fromkeys([*found, *formed])]


@contextmanager
def _noting() -> Iterator[list[str]]:
    found: list[str] = []

    def noting(function: Any, replacement: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            if not _name(function).startswith("__") and _MATTERS.get(function, lambda given: True)(kwargs):
                found.append(_name(function))
            return replacement(*args, **kwargs)

        return called

    table = mode._REPLACEMENTS
    own = {function: each for function, each in table.items() if function not in writing.REPLACEMENTS}
    try:
        table.update({function: noting(function, each) for function, each in own.items()})
        yield found
    finally:
        table.update(own)


def _name(function: Any) -> str:
    for prefix, room in (("F.", F), ("torch.", torch), ("Tensor.", torch.Tensor), ("init.", torch.nn.init)):
        for name, value in vars(room).items():
            if value is function:
                return prefix + name
    return str(getattr(function, "__name__", function))


if __name__ == "__main__":
    main()
