"""Runs as scikit-learn estimators: `fit` adapts to a small training set, in pipelines and in cross-validation.

The only file that imports scikit-learn; `metalearn.FewShotClassifier` imports it when it is asked for.
"""

import math
import os
from typing import Any

from metalearn.errors import UsageError
from metalearn.use.learner import AdaptedLearner, Learner
from metalearn.use.loading import load

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as missing:
    if (missing.name or "").partition(".")[0] != "sklearn":
        raise
    raise UsageError(
        "FewShotClassifier and FewShotRegressor need scikit-learn 1.6 or newer: "
        "pip install 'metalearn-torch[sklearn]'. metalearn.load(run).adapt(x, y).predict(x) does without."
    ) from None


class _FewShotEstimator(BaseEstimator):  # type: ignore[misc]
    """What the two estimators share. Nothing is read before `fit`, as scikit-learn's conventions ask."""

    _kind: str

    def __init__(
        self,
        run: str | os.PathLike[str] | Learner | None = None,
        *,
        num_inner_steps: int | None = None,
        checkpoint: str = "best",
        device: str = "auto",
        batch_size: int | None = None,
    ) -> None:
        self.run = run
        self.num_inner_steps = num_inner_steps
        self.checkpoint = checkpoint
        self.device = device
        self.batch_size = batch_size

    def predict(self, X: Any) -> Any:  # noqa: N803 - scikit-learn's name
        """The class, or the value, of each example.

        Args:
            X: `[example, feature]`, or `[example, *input_shape]` of the run's model.

        Returns:
            An array `[example]`, or `[example, output]` where `fit` was given such targets.

        Raises:
            sklearn.exceptions.NotFittedError: before `fit`.
            ValueError: the examples do not fit; of ours, a `UsageError`.
        """
        adapted = self._adapted()
        return adapted.predict(self._inputs(X, adapted.learner), batch_size=self.batch_size)

    def _fit(self, X: Any, y: Any) -> None:  # noqa: N803
        learner = self._learner(X, y)
        if learner.task.kind != self._kind:
            other = "FewShotRegressor" if self._kind == "classification" else "FewShotClassifier"
            raise UsageError(
                f"the run is a {learner.task.kind} ({learner.task.name}), which {type(self).__name__} is not for: "
                f"use {other}."
            )
        self.adapted_ = learner.adapt(_shaped(X, learner), y, num_inner_steps=self.num_inner_steps)

    def _learner(self, X: Any, y: Any) -> Learner:  # noqa: N803
        """The learner to adapt to examples `X` with targets `y`."""
        if isinstance(self.run, Learner):
            if self.checkpoint not in ("best", self.run.checkpoint):
                raise UsageError(
                    f"checkpoint={self.checkpoint!r}, but run is a Learner of the checkpoint {self.run.checkpoint!r}: "
                    "give the folder of the run, or metalearn.load(run, checkpoint=…)."
                )
            return self.run if self.device == "auto" else self.run.to(self.device)
        if self.run is None:
            raise UsageError(f"which run? {type(self).__name__}(run=DIR), with the folder of a run or a Learner.")
        return load(self.run, checkpoint=self.checkpoint, device=self.device)

    def _adapted(self) -> AdaptedLearner:
        check_is_fitted(self)
        adapted: AdaptedLearner = self.adapted_
        return adapted

    def _inputs(self, X: Any, learner: Learner) -> Any:  # noqa: N803
        return _shaped(validate_data(self, X, reset=False, allow_nd=True), learner)


class FewShotClassifier(ClassifierMixin, _FewShotEstimator):  # type: ignore[misc]
    """A meta-learned classifier: `fit` adapts the model of a run to a few examples of new classes.

    Args:
        run: the run directory, or a `Learner`.
        num_inner_steps: of adaptation; by default as many as in the run's test.
        checkpoint: `"best"` or `"last"`.
        device: a torch device, or `"auto"`.
        batch_size: how many examples to predict at once; all by default. Where the model is transductive (batch norm by
            the set at hand, `conv4`'s default) predictions depend on the examples that they are made together with.

    Attributes:
        classes_: the labels met in `fit`, sorted.
        n_features_in_: the features met in `fit`.
        adapted_: the `AdaptedLearner`.

    Example:
        classifier = make_pipeline(StandardScaler(), FewShotClassifier(run="outputs/…"))
        GridSearchCV(classifier, {"fewshotclassifier__num_inner_steps": [1, 5, 10]}, cv=3).fit(X, y)
    """

    _kind = "classification"

    def fit(self, X: Any, y: Any) -> "FewShotClassifier":  # noqa: N803
        """Adapts to examples.

        Args:
            X: `[example, feature]`, where the features are those of one input of the run's model, flat; or
                `[example, *input_shape]`. uint8 pictures are scaled as in training.
            y: labels `[example]`, of at most as many classes as the run has ways.

        Raises:
            ValueError: what does not fit; of ours, a `UsageError` that names both sides.
        """
        X, y = validate_data(self, X, y, allow_nd=True)  # noqa: N806
        check_classification_targets(y)
        self._fit(X, y)
        self.classes_ = self.adapted_.classes_
        return self

    def predict_proba(self, X: Any) -> Any:  # noqa: N803
        """The probability of each of `classes_`, `[example, class]`."""
        adapted = self._adapted()
        return adapted.predict_proba(self._inputs(X, adapted.learner), batch_size=self.batch_size)


class FewShotRegressor(RegressorMixin, _FewShotEstimator):  # type: ignore[misc]
    """A meta-learned regressor: `fit` adapts the model of a run to a few points of a new function.

    Args:
        run: the run directory, or a `Learner`.
        num_inner_steps: of adaptation; by default as many as in the run's test.
        checkpoint: `"best"` or `"last"`.
        device: a torch device, or `"auto"`.
        batch_size: how many examples to predict at once; all by default.

    Attributes:
        n_features_in_: the features met in `fit`.
        adapted_: the `AdaptedLearner`.
    """

    _kind = "regression"

    def fit(self, X: Any, y: Any) -> "FewShotRegressor":  # noqa: N803
        """Adapts to points.

        Args:
            X: `[example, feature]`, the features of one input of the run's model; or `[example, *input_shape]`.
            y: targets `[example]` or `[example, output]`.

        Raises:
            ValueError: what does not fit; of ours, a `UsageError` that names both sides.
        """
        X, y = validate_data(self, X, y, allow_nd=True, multi_output=True, y_numeric=True)  # noqa: N806
        self._fit(X, y)
        return self

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


def _shaped(X: Any, learner: Learner) -> Any:  # noqa: N803
    """Flat features as the model's inputs; what is not flat is left to the learner to check."""
    shape = learner.task.input_shape
    if X.ndim != 2 or len(shape) == 1:
        return X
    if X.shape[1] != math.prod(shape):
        raise UsageError(
            f"X has {X.shape[1]} features, the model of this run takes {math.prod(shape)} "
            f"({' x '.join(map(str, shape))}, flat). Resize the examples to what the run was trained on."
        )
    return X.reshape(len(X), *shape)
