"""One call of a module's forward on a skeleton, with copies of whatever it writes into."""

from collections.abc import Callable, Container, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from metalearn import tree
from metalearn.diagnosis import explanation, writes_into_a_shared_tensor
from metalearn.errors import UsageError
from metalearn.functional.attributes import Copies, copied_object
from metalearn.functional.hidden_draws import refused_hidden_draws
from metalearn.functional.interception import Interception
from metalearn.functional.interception.differentiation import LevelNeeded, in_own_level
from metalearn.functional.ownership import batched_zero, owned, version_of
from metalearn.functional.pool import INPUTS, SkeletonPool
from metalearn.types import RNG, Tensors


@dataclass(frozen=True)
class Call:
    """What a call of a functional model is made with, beside the inputs.

    Attributes:
        skeletons: of the module, in the mode that is meant.
        state: all parameters and buffers by name.
        key: what forward draws from, or None.
        parameters: the names of those that are parameters.
        foreign: tensors that forward must not use, the name of each by its id.
        rows: which rows of the inputs are real, bool `[example]`; None for all.
    """

    skeletons: SkeletonPool
    state: Mapping[str, Tensor]
    key: Tensor | None
    parameters: Container[str]
    foreign: Mapping[int, str]
    rows: Tensor | None

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Tensors]:
        """The output, and the state after the call by the same names, the next key among it as `"rng"`.

        A parameter that forward did not change is the caller's own tensor.
        """
        writes = self.skeletons.writes
        try:
            if not writes.known and _is_differentiated((self.state, args, kwargs)):
                # A run to learn from: a gradient through copies is summed in another order, so that the first call's
                # would differ from those of later calls, and a resumed run's, in the last bit.
                self._run(args, kwargs)
            return self._run(args, kwargs)
        except LevelNeeded:
            writes.differentiates = True
        except RuntimeError as error:
            if writes.apart or not writes_into_a_shared_tensor(error):
                told = explanation(error, self.state)
                if told is None:
                    raise
                raise told from error
            # First what forward makes gets an axis of tasks; if that is not enough, parameters, which costs memory.
            writes.shared, writes.apart = True, writes.shared
        return self(args, kwargs)

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Tensors]:
        if not self.skeletons.writes.differentiates:
            return self._run_here(args, kwargs)
        return in_own_level(
            lambda state, args, kwargs: replace(self, state=state)._run_here(args, kwargs),
            self.state, self.parameters, args, kwargs,
        )  # fmt: skip

    def _run_here(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Tensors]:
        """One run on copies of what forward is known to write into; the first one, on copies of everything."""
        writes = self.skeletons.writes
        # After an error the skeleton is dropped, with whatever state it is in.
        skeleton = self.skeletons.take()
        # A tensor of the module's that is in an attribute too is left to `foreign`.
        attributes = {name: value for name, value in skeleton.loose.items() if id(value) not in self.foreign}
        copied = {
            name: value
            for name, value in self.state.items()
            if name not in self.parameters or writes.may_write(name) or writes.apart
        }
        loose = {name: value for name, value in attributes.items() if writes.may_write(name)}
        zero = batched_zero((self.key, self.state, args, kwargs)) if copied or loose or writes.shared else None
        made = zero if writes.shared else None
        own = self._own(copied, zero)
        own_loose = owned(loose, made)
        # Lists, dicts and objects among the inputs are made anew in any case: forward may write into these too.
        kept = not writes.may_write(INPUTS)
        given, put_together = _taken_apart(args, kwargs)
        leaves = given if kept else [_copy(x, made) for x in given]
        args, kwargs = put_together(leaves)
        before = {**self.state, **own}
        watched = {**before, **attributes, **own_loose}
        versions = {name: version_of(value) for name, value in watched.items()}
        inputs = [(x, version_of(x)) for x in leaves if isinstance(x, Tensor)]
        skeleton.fill(before, own_loose)
        with Interception(
            self.key, foreign=self.foreign, rows=self.rows, statistics=self.skeletons.statistics, zero=made
        ) as intercepted:
            intercepted.differentiates = writes.differentiates
            with nullcontext() if writes.known else refused_hidden_draws():
                output = skeleton.root(*args, **kwargs)
        after = skeleton.read(before)
        skeleton.clear()
        self.skeletons.give_back(skeleton)
        past_autograd = {id(x) for x, alias, version in intercepted.aliases if version_of(alias) != version}
        written = {
            name for name, value in watched.items() if version_of(value) != versions[name] or id(value) in past_autograd
        }
        if any(version_of(x) != version for x, version in inputs):
            written.add(INPUTS)
        self._learn(written, own.keys() | own_loose.keys(), after)
        unchanged = {name for name, value in own.items() if after[name] is value and name not in written}
        theirs = [name for name in unchanged if name in self.parameters]
        after |= {name: self.state[name] for name in (*theirs, *self.skeletons.held)}
        return output, after if self.key is None else {**after, RNG: intercepted.next_key}

    def _own(self, copied: Tensors, zero: Tensor | None) -> Tensors:
        if self.skeletons.writes.known or self.skeletons.writes.shared:
            return owned(copied, zero)
        # A first run copies everything, but parameters without a task axis, which would cost all tasks' at once.
        apart = {name: value for name, value in copied.items() if name in self.parameters}
        return owned(apart, None) | owned({name: copied[name] for name in copied if name not in apart}, zero)

    def _learn(self, written: set[str], own: Container[str], after: Mapping[str, Tensor]) -> None:
        writes = self.skeletons.writes
        surprising = {name for name in written if not writes.may_write(name) and name not in own}
        writes.names |= written
        writes.reshaped |= {name for name, value in after.items() if value.shape != self.state[name].shape}
        writes.known = True
        for name in written & self.skeletons.overlaps.keys():
            raise UsageError(
                f"forward changes {name!r} in place, which in the module shares its memory with "
                f"{self.skeletons.overlaps[name]!r}: state held outside would not follow. Derive one in forward."
            )
        if surprising:
            raise UsageError(
                f"forward changed {min(surprising)!r} in place, which it did not do in its first call, so the caller's "
                "tensor changed too. Write `x = x + 1` for `x += 1` there, or run forward once on such inputs first."
            )


def _taken_apart(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[list[Any], Callable[[list[Any]], tuple[tuple[Any, ...], dict[str, Any]]]]:
    """The inputs as a list, and what makes inputs of such a list: containers and objects made anew."""
    if not kwargs and all(isinstance(arg, Tensor) for arg in args):  # the usual case, at a tenth of the cost
        return [*args], lambda leaves: (tuple(leaves), {})
    flat, structure = tree.flatten((args, kwargs))
    copies: Copies = {}
    return [copied_object(leaf, copies) for leaf in flat], lambda leaves: tree.unflatten(leaves, structure)


def _copy(leaf: Any, zero: Tensor | None) -> Any:
    return owned({"": leaf}, zero)[""] if isinstance(leaf, Tensor) else leaf


def _is_differentiated(nest: Any) -> bool:
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return True
    return torch.is_grad_enabled() and any(leaf.requires_grad for leaf in tree.tensors(nest))
