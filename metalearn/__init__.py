"""Differentiable meta-learning for PyTorch: the state held outside the model, every gradient certified."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from metalearn import (
    algorithms,
    ensembles,
    execution,
    losses,
    metagrad,
    models,
    normalisation,
    optim,
    random,
    state,
    tasks,
    testing,
    tree,
)
from metalearn.errors import UsageError
from metalearn.functional import FunctionalModel, functionalize
from metalearn.inner import Adapted, adapt
from metalearn.problem import Problem
from metalearn.sequence import unroll
from metalearn.stepping import start, step, value_and_grad
from metalearn.testing import check_stateless
from metalearn.types import Aux, Episodes

if TYPE_CHECKING:
    from metalearn.use import Learner, load

    # Not in __all__: `from metalearn import *` would import scikit-learn.
    from metalearn.use.estimators import FewShotClassifier as FewShotClassifier
    from metalearn.use.estimators import FewShotRegressor as FewShotRegressor

__version__ = "0.1.0"

__all__ = [
    "Adapted",
    "Aux",
    "Episodes",
    "FunctionalModel",
    "Learner",
    "Problem",
    "UsageError",
    "adapt",
    "algorithms",
    "check_stateless",
    "ensembles",
    "execution",
    "functionalize",
    "load",
    "losses",
    "metagrad",
    "models",
    "normalisation",
    "optim",
    "random",
    "start",
    "state",
    "step",
    "tasks",
    "testing",
    "tree",
    "unroll",
    "value_and_grad",
]

# Imported when they are asked for: `import metalearn` waits for neither Hydra nor scikit-learn, which is optional.
_LATER = {
    "load": "metalearn.use",
    "Learner": "metalearn.use",
    "FewShotClassifier": "metalearn.use.estimators",
    "FewShotRegressor": "metalearn.use.estimators",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
