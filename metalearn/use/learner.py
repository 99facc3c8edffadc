"""A trained run as an object: adapt it to a few examples, then predict."""

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, is_dataclass, replace
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from metalearn import tree
from metalearn.errors import UsageError
from metalearn.functional import FunctionalModel
from metalearn.normalisation import policy_of
from metalearn.training import TaskCard, resolve_device
from metalearn.training.experiment import has_inner_steps
from metalearn.types import Present, Tensors
from metalearn.use.inputs import as_inputs
from metalearn.use.targets import Classes, as_targets, index_labels, label_array


@dataclass(frozen=True, eq=False, kw_only=True)
class Learner:
    """What a run has learned, ready to be adapted to a person's own examples (`metalearn.load` makes one).

    It is immutable and can be pickled; `adapt` changes nothing in it.

    Attributes:
        task: what the model takes and gives.
        algorithm: the run's algorithm, with the number of inner steps to adapt by.
        model: the model in evaluation mode, with the buffers of the checkpoint.
        meta: what was meta-learned.
        checkpoint: its name, `"best"` or `"last"`.
        step: the meta steps it was trained for.
        run: the run directory that it came from.

    Example:
        learner = metalearn.load("outputs/omniglot/…")
        adapted = learner.adapt(["a1.png", "a2.png", "b1.png"], ["alpha", "alpha", "beta"])
        adapted.predict(["which.png"])  # array(['beta'])
    """

    task: TaskCard
    algorithm: Any
    model: FunctionalModel = field(repr=False)
    meta: Tensors = field(repr=False)
    checkpoint: str = "best"
    step: int = 0
    run: str | None = None

    @property
    def num_inner_steps(self) -> int | None:
        """How many inner steps `adapt` takes by default; `None` for an algorithm without any."""
        return getattr(self.algorithm, "num_inner_steps", None)

    @property
    def transductive(self) -> bool:
        """Whether predictions depend on the examples that they are made together with.

        They do where batch norm takes the statistics of the set at hand, as in the MAML papers and `conv4` by default:
        the run's normalisation policy says so.
        """
        return policy_of(getattr(self.algorithm, "normalisation", "module")).transductive(self.model.norms)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(iter(self.meta.values())).device

    def adapt(self, x: Any, y: Any, *, num_inner_steps: int | None = None) -> "AdaptedLearner":
        """Adapts the model to a support set, as the run did with its test tasks.

        Fewer classes than the model has outputs are fine: the others are left out of the loss and of predictions.

        Args:
            x: the examples: a tensor or an array `[example, *input_shape]` (uint8 pictures are scaled as in training),
                or a list of Pillow images or of paths of image files, decoded as the task's own were.
            y: for a classification one hashable label an example, such as `["cat", "dog", "cat"]`; for a regression
                numbers `[example, num_outputs]`, or `[example]` where there is one output, in the data's own units.
            num_inner_steps: by default as many as in the run's test, or as `metalearn.load` was told.

        Raises:
            UsageError: a shape, a label or a number that does not fit; the text names both sides.
        """
        algorithm = _with_steps(self.algorithm, num_inner_steps)
        y = list(y) if isinstance(y, Iterator) else y
        with _computing():
            inputs = as_inputs(x, self.task).to(self.device)
            classes: Classes | None = None
            if self.task.kind == "classification":
                classes, targets = index_labels(y, num_examples=len(inputs), card=self.task)
            else:
                targets = as_targets(y, num_examples=len(inputs), card=self.task)
                targets = targets.clone() if targets.is_inference() else targets
            support = (inputs, targets.to(self.device), *self._present(len(inputs), classes))
            state = algorithm.adapt(self.model, self.meta, self.model.buffers, support)
        return AdaptedLearner(
            learner=replace(self, algorithm=algorithm),
            state=state,
            classes=classes,
            like=_Like.of(y),
        )

    def with_inner_steps(self, num_inner_steps: int) -> "Learner":
        """The same learner with another default number of inner steps.

        Raises:
            UsageError: it is negative, or the algorithm takes none.
        """
        return replace(self, algorithm=_with_steps(self.algorithm, num_inner_steps))

    def to(self, device: torch.device | str) -> "Learner":
        """The same learner on `device`.

        Raises:
            UsageError: it is no device, or not there.
        """
        where = resolve_device(str(device))
        with _computing():
            return replace(self, model=self.model.to(where), meta=tree.to(self.meta, where))

    def __repr__(self) -> str:
        of = f", run={self.run!r}" if self.run else ""
        return (
            f"Learner(task={self.task.name!r}, algorithm={type(self.algorithm).__name__}, "
            f"model={type(self.model.module).__name__}, num_inner_steps={self.num_inner_steps}, "
            f"checkpoint={self.checkpoint!r} after {self.step} meta steps{of})"
        )

    def __deepcopy__(self, memo: Any) -> "Learner":
        # Immutable, so it is its own copy: scikit-learn copies an estimator's parameters for every fold.
        return self

    def _present(self, num_examples: int, classes: Classes | None) -> tuple[Present, ...]:
        """The mask of the outputs that are classes, where some are not: else the very computation of the run's test."""
        if classes is None or len(classes.labels) == self.task.num_outputs:
            return ()
        outputs = torch.zeros(self.task.num_outputs, dtype=torch.bool, device=self.device)
        outputs[list(classes.outputs)] = True
        return (Present(torch.ones(num_examples, dtype=torch.bool, device=self.device), outputs),)


@dataclass(frozen=True)
class _Like:
    """What the caller's targets were, so that predictions come back alike: a tensor or an array, flat or not."""

    tensor_on: torch.device | None
    flat: bool
    dtype: torch.dtype | None = None

    @classmethod
    def of(cls, y: Any) -> "_Like":
        is_list = isinstance(y, (list, tuple))
        flat = not (len(y) and _num_axes(y[0])) if is_list else getattr(y, "ndim", 1) == 1
        is_tensor = isinstance(y, Tensor)
        return cls(tensor_on=y.device if is_tensor else None, flat=flat, dtype=y.dtype if is_tensor else None)

    def form(self, values: Tensor, dtype: torch.dtype = torch.float32) -> Any:
        # Each world's own precision: NumPy's and scikit-learn's is float64.
        return values.double().numpy() if self.tensor_on is None else values.to(self.tensor_on, dtype)

    def values(self, values: Tensor) -> Any:
        """A regression's values, in the precision of the targets where these were real numbers."""
        dtype = self.dtype if self.dtype is not None and self.dtype.is_floating_point else torch.float32
        return self.form(values.flatten() if self.flat else values, dtype)


def _num_axes(entry: Any) -> int:
    return int(entry.ndim) if hasattr(entry, "ndim") else int(isinstance(entry, (list, tuple)))


@dataclass(frozen=True, eq=False, kw_only=True)
class AdaptedLearner:
    """A learner adapted to a support set. Immutable; it can be pickled.

    Where the model is transductive (`learner.transductive`), a prediction depends on the examples that it is made
    together with. So all of `x` is predicted at once by default, as in the run's test, and an example alone may be
    labelled otherwise than among others; `batch_size` bounds the memory at that price.

    Attributes:
        learner: what was adapted.
        state: what the algorithm made of it: its adapted parameters and buffers.
        classes: the classes, and which output stands for each; `None` for a regression.
        like: the form that predictions come back in: tensors if the targets were, else NumPy arrays.
    """

    learner: Learner
    state: Any = field(repr=False)
    classes: Classes | None
    like: _Like = field(repr=False)

    @property
    def classes_(self) -> Any:
        """The classes as an array `[class]`: the columns of `predict_proba`."""
        return label_array(self._classes())

    def predict(self, x: Any, *, batch_size: int | None = None) -> Any:
        """The likeliest class of each example, `[example]`; of a regression the values, in the units of the targets.

        Args:
            x: examples, as for `Learner.adapt`.
            batch_size: how many to compute at once; all by default.

        Raises:
            UsageError: the examples do not fit.
        """
        outputs = self.outputs(x, batch_size=batch_size).cpu()
        if self.classes is not None:
            chosen = outputs.argmax(1)
            if self.like.tensor_on is not None:
                labels = torch.tensor(self.classes.labels, dtype=self.like.dtype, device=self.like.tensor_on)
                return labels[chosen.to(self.like.tensor_on)]
            return self.classes_[chosen.numpy()]
        scale = self.learner.task.targets
        values = outputs if scale is None else scale.undo(outputs.double())
        return self.like.values(values)

    def predict_proba(self, x: Any, *, batch_size: int | None = None) -> Any:
        """The probability of each class for each example, `[example, class]` in the order of `classes_`.

        Args:
            x: examples, as for `Learner.adapt`.
            batch_size: how many to compute at once; all by default.

        Raises:
            UsageError: the examples do not fit, or the task is a regression.
        """
        self._classes()
        shares = self.outputs(x, batch_size=batch_size).cpu().double().softmax(1)
        return self.like.form(shares)

    def outputs(self, x: Any, *, batch_size: int | None = None) -> Tensor:
        """The model's own outputs, on the learner's device: a logit for each of `classes_`, or values in its own units.

        Args:
            x: examples, as for `Learner.adapt`.
            batch_size: how many to compute at once; all by default.

        Raises:
            UsageError: the examples do not fit, or the adaptation diverged.
        """
        if batch_size is not None and not _is_count(batch_size, least=1):
            raise UsageError(f"batch_size is {batch_size!r}; it has to be at least 1, or None for all at once.")
        learner = self.learner
        with _computing():
            inputs = as_inputs(x, learner.task)
            parts = [
                learner.algorithm.predict(learner.model, learner.meta, self.state, part.to(learner.device))
                for part in torch.split(inputs, int(batch_size or len(inputs)))
            ]
            outputs = torch.cat(parts)
        # Some algorithms say minus infinity for outputs that are no classes of the support set.
        outputs = outputs if self.classes is None else outputs[:, list(self.classes.outputs)]
        if not outputs.isfinite().all():
            raise UsageError(
                f"the model's outputs are not finite after {learner.num_inner_steps} inner steps: the adaptation "
                "diverged. Take fewer num_inner_steps, and examples in the units that the run was trained on."
            )
        return outputs

    def __repr__(self) -> str:
        of = "" if self.classes is None else f", classes={list(self.classes.labels)}"
        return f"AdaptedLearner({self.learner!r}{of})"

    def __deepcopy__(self, memo: Any) -> "AdaptedLearner":
        return self

    def _classes(self) -> tuple[Hashable, ...]:
        if self.classes is None:
            raise UsageError(f"the task {self.learner.task.name!r} is a regression and has no classes: use predict.")
        return self.classes.labels


@contextmanager
def _computing() -> Iterator[None]:
    """Where an inner loop can differentiate, whatever mode the caller is in, and nothing else has a gradient."""
    try:
        with torch.inference_mode(False), torch.no_grad():
            yield
    except ValueError as error:
        if not str(error).startswith("Expected more than 1 "):
            raise
        # Batch norm, of vectors or of pictures of one pixel.
        raise UsageError(
            "the model of this run normalises by the set at hand, and one example has no spread "
            f"({' '.join(str(error).split())}). Give two or more at once, or train with "
            "model.norm=layer, or model.norm=batch_running and algorithm.normalisation=shared."
        ) from None


def _with_steps(algorithm: Any, num_inner_steps: int | None) -> Any:
    if num_inner_steps is None:
        return algorithm
    if not is_dataclass(algorithm) or not hasattr(algorithm, "num_inner_steps") or not has_inner_steps(algorithm):
        raise UsageError(f"{type(algorithm).__name__} takes no inner steps: leave num_inner_steps out.")
    if not _is_count(num_inner_steps, least=0):
        raise UsageError(f"num_inner_steps is {num_inner_steps!r}; it has to be a whole number of at least 0.")
    return replace(algorithm, num_inner_steps=int(num_inner_steps))  # type: ignore[type-var]


def _is_count(value: Any, *, least: int) -> bool:
    # NumPy's integers too: a grid of hyper-parameters is often an `np.arange`.
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least
