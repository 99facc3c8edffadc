"""The estimators are what scikit-learn says an estimator is, and predict what the learner predicts."""

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, LabelEncoder, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import metalearn
from metalearn import FewShotClassifier, FewShotRegressor, algorithms, functionalize, losses, optim
from metalearn.errors import UsageError
from metalearn.models import MLP
from metalearn.training import TaskCard
from metalearn.types import Episodes
from metalearn.use import Learner


def untrained(kind: str, *, num_features: int, num_outputs: int) -> Learner:
    """A learner of any width, with enough inner steps to learn scikit-learn's own small data sets from nothing."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = functionalize(MLP(input_shape=(num_features,), num_outputs=num_outputs, hidden=(32,))).eval()
    loss = losses.cross_entropy if kind == "classification" else losses.mean_squared_error
    algorithm = algorithms.MAML(loss=loss, inner_lr=0.03, num_inner_steps=30, inner_optimizer=optim.adam)
    card = TaskCard(name="checks", kind=kind, input_shape=(num_features,), num_outputs=num_outputs)
    return Learner(task=card, algorithm=algorithm, model=model, meta=algorithm.init(model))


class AnyWidthClassifier(FewShotClassifier):
    """For scikit-learn's checks, which bring data of many widths: all is ours but the run, which would have one."""

    def _learner(self, X: Any, y: Any) -> Learner:  # noqa: N803
        return untrained("classification", num_features=X.shape[1], num_outputs=10)


class AnyWidthRegressor(FewShotRegressor):
    """The same for regression."""

    def _learner(self, X: Any, y: Any) -> Learner:  # noqa: N803
        return untrained("regression", num_features=X.shape[1], num_outputs=1 if y.ndim == 1 else y.shape[1])


@parametrize_with_checks([AnyWidthClassifier(), AnyWidthRegressor()])
def test_scikit_learns_own_checks(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.fixture
def flat(glyph_episodes: Episodes) -> tuple[Any, Any, Any]:
    """One task's support inputs as scikit-learn likes them, its labels as text, and the query inputs."""
    (x, y, *_), (query, *_) = glyph_episodes.support, glyph_episodes.query
    return x[0].flatten(1).numpy(), np.array(["abcde"[each] for each in y[0].tolist()]), query[0].flatten(1).numpy()


def test_it_predicts_what_the_learner_predicts(
    flat: tuple[Any, Any, Any], glyph_run: Path, glyph_learner: Learner
) -> None:
    x, y, query = flat
    expected = glyph_learner.adapt(x.reshape(-1, 1, 28, 28), y)
    for run in (glyph_run, str(glyph_run), glyph_learner):
        classifier = FewShotClassifier(run, device="cpu").fit(x, y)
        assert classifier.classes_.tolist() == list("abcde")
        assert classifier.n_features_in_ == 784
        assert np.array_equal(classifier.predict_proba(query), expected.predict_proba(query.reshape(-1, 1, 28, 28)))
        assert np.array_equal(classifier.predict(query), expected.predict(query.reshape(-1, 1, 28, 28)))
    images = FewShotClassifier(glyph_learner).fit(x.reshape(-1, 1, 28, 28), y)
    assert np.array_equal(images.predict(query.reshape(-1, 1, 28, 28)), classifier.predict(query))


def test_pictures_of_bytes_are_scaled(flat: tuple[Any, Any, Any], glyph_learner: Learner) -> None:
    x, y, query = flat
    as_bytes = FewShotClassifier(glyph_learner).fit((x * 255).round().astype(np.uint8), y)
    assert np.array_equal(
        as_bytes.predict_proba(query), FewShotClassifier(glyph_learner).fit(x, y).predict_proba(query)
    )


def test_in_a_pipeline_cross_validation_and_a_grid_search(flat: tuple[Any, Any, Any], glyph_run: Path) -> None:
    x, y, query = flat
    pipeline = make_pipeline(FunctionTransformer(np.sqrt), FewShotClassifier(glyph_run, device="cpu"))
    scores = cross_val_score(pipeline, x, y, cv=2)
    assert scores.shape == (2,)
    assert ((scores >= 0) & (scores <= 1)).all()
    grid = {"fewshotclassifier__num_inner_steps": np.arange(3)}
    search = GridSearchCV(pipeline, grid, cv=2, error_score="raise").fit(x, y)
    assert search.best_params_["fewshotclassifier__num_inner_steps"] in (0, 1, 2)
    assert search.predict(query).shape == (len(query),)
    # Different numbers of steps are different predictions: the parameter arrives.
    none, many = (clone(pipeline).set_params(fewshotclassifier__num_inner_steps=steps).fit(x, y) for steps in (0, 9))
    assert not np.allclose(none.predict_proba(query), many.predict_proba(query))


def test_a_regressor_in_a_pipeline(sinusoid_run: Path, sinusoid_learner: Learner) -> None:
    x = np.linspace(-5, 5, 12)[:, None]
    y = np.sin(x[:, 0])
    scaled = make_pipeline(StandardScaler(), FewShotRegressor(sinusoid_run, device="cpu")).fit(x, y)
    in_units = StandardScaler().fit_transform(x)
    expected = sinusoid_learner.adapt(in_units, y).predict(in_units)
    np.testing.assert_allclose(scaled.predict(x), expected, rtol=1e-6)
    assert FewShotRegressor(sinusoid_learner).fit(x, y[:, None]).predict(x).shape == (12, 1)
    assert cross_val_score(FewShotRegressor(sinusoid_learner), x, y, cv=3).shape == (3,)


def test_a_fitted_one_is_pickled(flat: tuple[Any, Any, Any], glyph_run: Path) -> None:
    x, y, query = flat
    fitted = FewShotClassifier(glyph_run, num_inner_steps=2, device="cpu").fit(x, y)
    assert np.array_equal(pickle.loads(pickle.dumps(fitted)).predict_proba(query), fitted.predict_proba(query))
    assert clone(fitted).get_params() == fitted.get_params()


def test_integer_labels_stay_integers(flat: tuple[Any, Any, Any], glyph_learner: Learner) -> None:
    x, y, query = flat
    numbers = LabelEncoder().fit_transform(y) * 10
    assert set(FewShotClassifier(glyph_learner).fit(x, numbers).predict(query)) <= {0, 10, 20, 30, 40}


def test_mistakes_are_told(flat: tuple[Any, Any, Any], glyph_learner: Learner, sinusoid_learner: Learner) -> None:
    x, y, _ = flat
    cases: list[tuple[Any, Any, Any, str]] = [
        (FewShotClassifier(), x, y, r"which run\? FewShotClassifier\(run=DIR\)"),
        (FewShotClassifier("nowhere"), x, y, "run=nowhere is not there"),
        (FewShotClassifier(glyph_learner), x[:, :700], y, r"X has 700 features.*takes 784 \(1 x 28 x 28"),
        (FewShotClassifier(glyph_learner), x.reshape(-1, 28, 28), y, r"x has shape \[10, 28, 28\]"),
        (FewShotClassifier(glyph_learner), x, np.arange(10), "10 classes.*at most 5"),
        (FewShotClassifier(glyph_learner, num_inner_steps=-1), x, y, "num_inner_steps is -1"),
        (FewShotClassifier(sinusoid_learner), x, y, "use FewShotRegressor"),
        (FewShotRegressor(glyph_learner), x, np.arange(10.0), "use FewShotClassifier"),
        (FewShotRegressor(sinusoid_learner), x, np.arange(10.0), r"x has shape \[10, 784\].*\[example, 1\]"),
    ]
    for estimator, inputs, targets, expected in cases:
        with pytest.raises(UsageError, match=expected):
            estimator.fit(inputs, targets)


@pytest.mark.parametrize(("code", "absent"), [("import metalearn", "hydra"), ("from metalearn import *", "sklearn")])
def test_what_is_optional_or_slow_is_imported_when_it_is_used(code: str, absent: str) -> None:
    check = f"import sys; {code}; print({absent!r} in sys.modules); import metalearn; print(dir(metalearn))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("False")
    assert "'FewShotClassifier'" in done.stdout


def test_without_scikit_learn_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['sklearn'] = None\n"
        "import metalearn\n"
        "try:\n    metalearn.FewShotClassifier\n"
        "except metalearn.UsageError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'metalearn-torch[sklearn]'" in done.stdout


def test_an_unknown_name_of_the_package_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'FewShotClasifier'"):
        _ = metalearn.FewShotClasifier  # type: ignore[attr-defined]
