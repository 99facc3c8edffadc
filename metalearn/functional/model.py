"""The functional model: what a user calls."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from metalearn import random, tree
from metalearn.errors import UsageError, did_you_mean
from metalearn.functional.norms import STATISTICS, Norms
from metalearn.functional.ownership import overlapping
from metalearn.functional.parts import with_part
from metalearn.functional.pool import SkeletonPool
from metalearn.functional.running import Call
from metalearn.functional.skeleton import places_of
from metalearn.types import RNG, Statistics, Tensors


@dataclass(frozen=True, eq=False)  # equal to itself alone: dicts of tensors have no truth value, and no hash
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

        State that `forward` changes, in place or by assignment, buffers and parameters alike, comes back with its
        history: gradients flow through it from call to call.

        Args:
            params: every parameter of the model by name; one that `buffers` holds may be left out.
            buffers: every buffer by name, `"rng"` where the model draws. A parameter's name here shadows `params`.
            *args: passed to the module's `forward`; lists, dicts and other objects (a cache, say) as copies.
            **kwargs: likewise.

        Returns:
            The output, and new buffers: all that were given, changed where `forward` changed them, together with any
            parameter that `forward` itself changed.

        Raises:
            UsageError: a name is missing or unknown, an entry is no tensor, its shape or kind of dtype is not the
                module's, or the state is on two devices.
        """
        try:
            state = {**params, **buffers}
        except TypeError as error:
            raise _not_dicts(params, buffers) from error
        key = state.pop(RNG, None)
        if key is not None and not (isinstance(key, Tensor) and key.dtype == torch.int64 and not key.dim()):
            raise _no_key(key)
        self._check(state)
        call = Call(self._skeletons, state, key, self.params.keys(), self._foreign(state), self.rows)
        output, after = call(args, kwargs)
        changed = {name: value for name, value in after.items() if name not in buffers and value is not state[name]}
        return output, {**{name: after[name] for name in buffers}, **changed}

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

    def normalising(self, statistics: Statistics | None) -> "FunctionalModel":
        """This model with these statistics in its norms that keep running ones, whatever the mode it is in.

        `"set"`: those of the set at hand; running ones are neither read nor written. `"tracked"`: those of the set at
        hand, and the running ones are updated, as torch does in training mode. `"running"`: the running ones, which
        stay as they are. None: what the module and its mode say. `metalearn.normalisation` has policies of these.

        It concerns batch norms, instance norms that track, subclasses of them, modules with buffers `running_mean` and
        `running_var`, and calls of `F.batch_norm`.

        Raises:
            UsageError: an unknown name; in a call, `"tracked"` or `"running"` for a batch norm that keeps none.
        """
        if statistics is not None and statistics not in STATISTICS:
            raise UsageError(
                f"normalising({statistics!r}): there are no such statistics. "
                f"{did_you_mean(str(statistics), STATISTICS)}"
            )
        return replace(self, _skeletons=self._skeletons.normalising(statistics))

    def without(self, part: str) -> "FunctionalModel":
        """This model with a submodule that returns its input: a backbone without its `"head"` gives features.

        Its state is the part of this model's that is left. The user's module is not changed.

        Raises:
            UsageError: there is no such submodule.
        """
        known = self._skeletons.without
        if part not in known:
            known[part] = self.exchanging(part, lambda _: nn.Identity())
        left: FunctionalModel = known[part]
        params = {name: self.params[name] for name in left.params}
        buffers = {name: self.buffers[name] for name in left.buffers}
        return replace(left, params=params, buffers=buffers, rows=self.rows)

    def exchanging(self, part: str, change: Callable[[nn.Module], nn.Module]) -> "FunctionalModel":
        """This model with another module in the place of a submodule; the user's module is not changed.

        State that both have stays as it is; what is new has the values of the new submodule.

        Args:
            part: the submodule's name.
            change: from a copy of the submodule, whose tensors and dicts are still the user's, to what replaces it.

        Raises:
            UsageError: there is no such submodule.
        """
        module = with_part(self.module, part, change)
        any_own = next(iter((*self.params.values(), *self.buffers.values())), torch.empty(0))

        def state(named: Iterable[tuple[str, Tensor]], own: Tensors) -> Tensors:
            new = {name: value for name, value in named if name not in own}
            new = tree.to({name: value.detach().clone() for name, value in new.items()}, any_own.device)
            return {**{name: own[name] for name, _ in named if name in own}, **new}

        params = state([*module.named_parameters()], self.params)
        buffers = state([*module.named_buffers()], self.buffers)
        key = {RNG: self.buffers[RNG]} if RNG in self.buffers else {}
        return _restored(module, params, {**buffers, **key}, self._modes(), self.rows)

    @property
    def training(self) -> bool:
        """Whether the module as a whole is in training mode."""
        return self._skeletons.root_trains

    @property
    def norms(self) -> Norms:
        """The norms that `normalising` is about."""
        return self._skeletons.norms

    def to(self, target: torch.device | str | torch.dtype) -> "FunctionalModel":
        """This model with its state on another device, or its floating-point state in another dtype."""

        def move(state: Tensors) -> Tensors:
            return tree.cast(state, target) if isinstance(target, torch.dtype) else tree.to(state, target)

        return replace(self, params=move(self.params), buffers=move(self.buffers))

    def __reduce__(self) -> Any:
        return _restored, (self.module, self.params, self.buffers, self._modes(), self.rows)

    def _modes(self) -> Any:
        return self._skeletons.own_modes, self._skeletons.training, self._skeletons.statistics

    def _in_mode(self, *, training: bool) -> "FunctionalModel":
        return replace(self, _skeletons=self._skeletons.in_mode(training=training))

    def _foreign(self, state: Mapping[str, Tensor]) -> Mapping[int, str]:
        """The module's own tensors by id, which forward must not reach; none where the caller passes them in."""
        return {} if any(id(value) in self._own_names for value in state.values()) else self._own_names

    def _check(self, state: Mapping[str, Tensor]) -> None:
        expected = self._own_tensors
        if state.keys() != expected.keys():
            _raise_wrong_names(state, expected)
        device = getattr(next(iter(state.values()), None), "device", None)
        for name, value in expected.items():
            given = state[name]
            if not isinstance(given, Tensor):
                raise UsageError(
                    f"{name!r} is a {type(given).__name__}, the model expects a tensor of shape {list(value.shape)}: "
                    "torch.as_tensor(value) makes one."
                )
            if given.dtype != value.dtype and given.is_floating_point() != value.is_floating_point():
                raise UsageError(
                    f"{name!r} is {given.dtype}, the model expects {value.dtype}: cast it with .to({value.dtype})."
                )
            if given.shape != value.shape and not self._may_have_shape(name, given):
                raise UsageError(
                    f"{name!r} has shape {list(given.shape)}, the model expects {list(value.shape)}. "
                    "Inside vmap a task axis is hidden; outside it, index one task first."
                )
            if given.device != device and len({own.device for own in expected.values()}) == 1:
                raise UsageError(
                    f"{name!r} is on {given.device}, other state on {device}: move all of it with "
                    "metalearn.tree.to((params, buffers), device), or model.to(device)."
                )

    def _may_have_shape(self, name: str, given: Tensor) -> bool:
        """Whether forward is known to give this entry other shapes than the module's, or it started with this one."""
        initial = self.params.get(name, self.buffers.get(name))
        return name in self._skeletons.writes.reshaped or (initial is not None and initial.shape == given.shape)


def functionalize(module: nn.Module, *, seed: int = 0) -> FunctionalModel:
    """A pure function of the module's state, and that state.

    Args:
        module: any module; it stays as it is. Its training or evaluation mode is taken over.
        seed: the seed of the initial key in `buffers["rng"]`.

    Raises:
        UsageError: the module has lazy parameters that no call has shaped yet, or a buffer called "rng" of its own, is
            compiled by torch.jit, or has a parameter that shares its memory with another entry.
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
    overlaps = overlapping(own)
    for name in params:
        if name in overlaps:
            raise UsageError(
                f"{name!r} shares its memory with {overlaps[name]!r}, which state held outside can not: one would not "
                "follow the other. Tie them as one nn.Parameter (`b.weight = a.weight`), or derive one in forward."
            )
    return FunctionalModel(
        module=module,
        params=params,
        buffers={**buffers, RNG: random.key(seed, device=device)},
        _skeletons=SkeletonPool(module, places_of(module), None, overlaps=overlaps),
        _own_tensors=own,
        _own_names={id(value): name for name, value in own.items()},
    )


def _restored(
    module: nn.Module,
    params: Tensors,
    buffers: Tensors,
    modes: tuple[Mapping[str, bool], bool | None, Statistics | None],
    rows: Tensor | None,
) -> FunctionalModel:
    own_modes, training, statistics = modes
    later = {part: part.training for part in module.modules()}
    try:  # the module's mode may be another one by now than when it was functionalized
        for name, part in module.named_modules():
            part.training = own_modes.get(name, part.training)
        model = functionalize(module)
    finally:
        for part, mode in later.items():
            part.training = mode
    model = replace(model, params=params, buffers=buffers, rows=rows)
    model = model if training is None else model._in_mode(training=training)
    return model.normalising(statistics)


def _no_key(got: Any) -> UsageError:
    what = f"{got.dtype} of shape {list(got.shape)}" if isinstance(got, Tensor) else type(got).__name__
    return UsageError(
        f"buffers[{RNG!r}] is a {what}, but must be one key, an int64 scalar: metalearn.random.key(seed). "
        "Of several keys, one a task, each task takes one inside vmap."
    )


def _not_dicts(params: Any, buffers: Any) -> UsageError:
    what, got = ("buffers", buffers) if isinstance(params, Mapping) else ("params", params)
    return UsageError(
        f"`{what}` is a {type(got).__name__}, but must be a dict of tensors by name: "
        "call model(params, buffers, *inputs), for example with model.params and model.buffers."
    )


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
