"""A module as a pure function of state that is held outside it.

    output, buffers = model(params, buffers, *args, **kwargs)

The user's module is never changed, not even during a call: a call runs on a skeleton of it (`metalearn.skeleton`).
Skeletons are pooled, one a concurrent call, so two threads may call one model.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from metalearn import random, tree
from metalearn.errors import UsageError, did_you_mean
from metalearn.interception import Interception
from metalearn.skeleton import SkeletonPool, places_of
from metalearn.types import Tensors

RNG = "rng"
"""The name among the buffers of the random key that the model draws from."""


@dataclass(frozen=True)
class FunctionalModel:
    """A module as a pure function, with its initial state.

    Calling it never mutates an input, and the same inputs give the same outputs. `buffers["rng"]` is the key that
    dropout and other draws use; each draw advances the returned one.

    Attributes:
        module: the user's module, for reference; never changed.
        params: initial parameters by the module's own names (a tied parameter appears once, by its first name).
        buffers: initial buffers by the module's own names, and the key `"rng"`.
        rows: which rows of the inputs are real, bool `[example]`, or None for all (`seeing`).

    Example:
        >>> model = functionalize(nn.Linear(2, 1))
        >>> output, buffers = model(model.params, model.buffers, torch.ones(3, 2))
        >>> sorted(model.params), output.shape
        (['bias', 'weight'], torch.Size([3, 1]))
    """

    module: nn.Module
    params: Tensors
    buffers: Tensors
    _skeletons: SkeletonPool = field(repr=False, compare=False)
    _own_tensors: Mapping[str, Tensor] = field(repr=False, compare=False)
    _own_names: Mapping[int, str] = field(repr=False, compare=False)
    rows: Tensor | None = field(default=None, repr=False, compare=False)

    def __call__(
        self, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor], *args: Any, **kwargs: Any
    ) -> tuple[Any, Tensors]:
        """The module's output on `args`, and the buffers after the call.

        Args:
            params: every parameter of the model by name; one that `buffers` holds may be left out.
            buffers: every buffer by name, `"rng"` where the model draws. A parameter's name here shadows `params`.
            *args: passed to the module's `forward`.
            **kwargs: likewise.

        Returns:
            The output, and new buffers: all that were given, changed where `forward` changed them, together with any
            parameter that `forward` itself assigned to.

        Raises:
            UsageError: a name is missing or unknown, or a shape is not the module's.
        """
        state = {**params, **buffers}
        key = state.pop(RNG, None)
        self._check(state)
        owned = _own({name: value for name, value in state.items() if name not in self.params}, (state, args, kwargs))
        state.update(owned)
        # What forward must not write to: the caller's parameters, and inputs unless it gets copies of them.
        given = [(name, state[name]) for name in self.params]
        if self._skeletons.inplace:
            args, kwargs = tree.map_tensors(Tensor.clone, (args, kwargs))
        else:
            given += [("an input", x) for x in tree.tensors((args, kwargs))]
        versions = [value._version for _, value in given]
        skeleton = self._skeletons.take()
        try:
            skeleton.fill(state)
            with Interception(key, foreign=self._foreign(state), rows=self.rows) as intercepted:
                output = skeleton.root(*args, **kwargs)
            after = skeleton.read(state)
        finally:
            skeleton.clear()
            self._skeletons.give_back(skeleton)
        for (name, value), version in zip(given, versions, strict=True):
            if value._version != version:
                raise UsageError(
                    f"forward changed {name!r} in place, so the caller's tensor changed too. Write `x = x + 1`, not "
                    "`x += 1` (for state of the module, register it as a buffer)."
                )
        changed = {name: value for name, value in after.items() if name in owned or value is not state[name]}
        rng = {} if key is None else {RNG: intercepted.next_key}
        return output, {**changed, **{name: buffers[name] for name in buffers if name not in after}, **rng}

    def train(self) -> "FunctionalModel":
        """This model in training mode, whatever the module's own mode; the module is not changed."""
        return self._in_mode(training=True)

    def eval(self) -> "FunctionalModel":
        """This model in evaluation mode, whatever the module's own mode; the module is not changed."""
        return self._in_mode(training=False)

    def with_buffers(self, buffers: Mapping[str, Tensor]) -> "FunctionalModel":
        """This model with other initial buffers, for example those that a meta step has returned."""
        return replace(self, buffers=dict(buffers))

    def seeing(self, rows: Tensor | None) -> "FunctionalModel":
        """This model for padded inputs, of which these rows are real: batch statistics are taken over them alone.

        A row's output is then what it is without the padding, for every module that treats rows one by one but for
        batch norm. One that mixes rows otherwise (attention over the examples, say) is not helped by this.

        Args:
            rows: bool `[example]`; None takes all rows for real.
        """
        return self if rows is self.rows else replace(self, rows=rows)

    def to(self, target: torch.device | str | torch.dtype) -> "FunctionalModel":
        """This model with its state on another device, or its floating-point state in another dtype."""

        def move(state: Tensors) -> Tensors:
            return tree.cast(state, target) if isinstance(target, torch.dtype) else tree.to(state, target)

        return replace(self, params=move(self.params), buffers=move(self.buffers))

    def __reduce__(self) -> Any:
        return _restored, (self.module, self.params, self.buffers, self._skeletons.training)

    def _in_mode(self, *, training: bool) -> "FunctionalModel":
        return replace(self, _skeletons=self._skeletons.in_mode(training=training))

    def _foreign(self, state: Mapping[str, Tensor]) -> Mapping[int, str]:
        """The module's own tensors by id, which forward must not reach; none where the caller passes them in."""
        return {} if any(id(value) in self._own_names for value in state.values()) else self._own_names

    def _check(self, state: Mapping[str, Tensor]) -> None:
        expected = self._own_tensors
        if state.keys() != expected.keys():
            _raise_wrong_names(state, expected)
        for name, value in expected.items():
            if state[name].shape != value.shape:
                raise UsageError(
                    f"{name!r} has shape {list(state[name].shape)}, the model expects {list(value.shape)}. "
                    "Inside vmap a task axis is hidden; outside it, index one task first."
                )


def functionalize(module: nn.Module, *, seed: int = 0) -> FunctionalModel:
    """A pure function of the module's state, and that state.

    Args:
        module: any module; it stays as it is. Its training or evaluation mode is taken over.
        seed: the seed of the initial key in `buffers["rng"]`.

    Raises:
        UsageError: the module has lazy parameters that no call has shaped yet, or a buffer called "rng" of its own, or
            is compiled by torch.jit.
    """
    if not isinstance(module, nn.Module):
        raise UsageError(f"functionalize takes a torch.nn.Module, got {type(module).__name__}.")
    if any(isinstance(part, torch.jit.ScriptModule) for part in module.modules()):
        raise UsageError(
            "a torch.jit.ScriptModule keeps its tensors out of reach: functionalize the module it was made of."
        )
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        if isinstance(value, nn.parameter.UninitializedParameter | nn.parameter.UninitializedBuffer):
            raise UsageError(
                f"{name!r} has no shape yet: call the lazy module once on an example, then functionalize it."
            )
        if name == RNG:
            raise UsageError(
                "the module has an entry named 'rng', which metalearn keeps for its random key: rename it."
            )
    params = {name: value.detach().clone() for name, value in module.named_parameters()}
    buffers = {name: value.detach().clone() for name, value in module.named_buffers()}
    device = next(iter((*params.values(), *buffers.values())), torch.empty(0)).device
    own = dict((*module.named_parameters(), *module.named_buffers()))
    return FunctionalModel(
        module=module,
        params=params,
        buffers={**buffers, RNG: random.key(seed, device=device)},
        _skeletons=SkeletonPool(module, places_of(module), None),
        _own_tensors=own,
        _own_names={id(value): name for name, value in own.items()},
    )


def _restored(module: nn.Module, params: Tensors, buffers: Tensors, training: bool | None) -> FunctionalModel:
    model = replace(functionalize(module), params=params, buffers=buffers)
    return model if training is None else model._in_mode(training=training)


def _own(buffers: Mapping[str, Tensor], inputs: Any) -> Tensors:
    """Copies that forward may write into.

    Inside vmap each task gets its own, because torch refuses to write a task's value into a tensor that all share.
    """
    if not buffers:
        return {}
    zero = _batched_zero(inputs)
    if zero is None:
        return {name: value.clone() for name, value in buffers.items()}
    return {
        name: value.clone() if value.dtype == torch.bool else value + zero.to(value.dtype)
        for name, value in buffers.items()
    }


def _batched_zero(inputs: Any) -> Tensor | None:
    """A zero that carries every vmap axis of `inputs`, or None outside vmap."""
    functorch = torch._C._functorch
    if functorch.peek_interpreter_stack() is None:
        return None
    zero: Tensor | None = None
    levels: set[int] = set()
    for leaf in tree.tensors(inputs):
        for level in _vmap_levels(leaf) - levels:
            levels.add(level)
            own = torch.zeros_like(leaf.detach()[(0,) * leaf.dim()])
            zero = own if zero is None else zero + own
    return zero


def _vmap_levels(value: Tensor) -> set[int]:
    functorch = torch._C._functorch
    levels: set[int] = set()
    while functorch.is_functorch_wrapped_tensor(value):
        if functorch.is_batchedtensor(value):
            levels.add(functorch.maybe_get_level(value))
        value = functorch.get_unwrapped(value)
    return levels


def _raise_wrong_names(state: Mapping[str, Tensor], expected: Mapping[str, Any]) -> None:
    unknown = [name for name in state if name not in expected]
    missing = [name for name in expected if name not in state]
    if unknown:
        raise UsageError(
            f"the model has no parameter or buffer {unknown[0]!r} (got {len(state)} names, expected {len(expected)}). "
            f"{did_you_mean(unknown[0], expected)}"
        )
    raise UsageError(
        f"params and buffers have no entry {missing[0]!r} that the model needs (got {len(state)} names, expected "
        f"{len(expected)}). Pass every named tensor; to freeze some, merge them in: `model({{**frozen, **params}}, …)`."
    )
