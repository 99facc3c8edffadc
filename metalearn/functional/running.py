"""One call of a module's forward on a skeleton, with copies of whatever it writes into."""

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metalearn import tree
from metalearn.diagnosis import explanation, writes_into_a_shared_tensor
from metalearn.errors import UsageError
from metalearn.functional.interception import Interception
from metalearn.functional.ownership import batched_zero, expanded, owned, version_of
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
        except RuntimeError as error:
            if writes.shared or not writes_into_a_shared_tensor(error):
                told = explanation(error, self.state)
                if told is None:
                    raise
                raise told from error
        writes.shared = True
        return self(args, kwargs)

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Tensors]:
        """One run on copies of what forward is known to write into; the first one, on copies of everything."""
        writes = self.skeletons.writes
        copied = {
            name: value for name, value in self.state.items() if name not in self.parameters or writes.may_write(name)
        }
        zero = batched_zero((self.key, self.state, args, kwargs)) if copied or writes.shared else None
        made = zero if writes.shared else None
        own = self._own(copied, zero)
        if writes.may_write(INPUTS):
            args, kwargs = tree.map_tensors(lambda x: x.clone() if made is None else expanded(x, made), (args, kwargs))
        before = {**self.state, **own}
        versions = {name: version_of(value) for name, value in before.items()}
        inputs = [(x, version_of(x)) for x in tree.tensors((args, kwargs))]
        # After an error the skeleton is dropped, with whatever state it is in.
        skeleton = self.skeletons.take()
        skeleton.fill(before)
        with Interception(
            self.key, foreign=self.foreign, rows=self.rows, statistics=self.skeletons.statistics, zero=made
        ) as intercepted:
            output = skeleton.root(*args, **kwargs)
        after = skeleton.read(before)
        skeleton.clear()
        self.skeletons.give_back(skeleton)
        past_autograd = {id(x) for x, alias, version in intercepted.aliases if version_of(alias) != version}
        written = {
            name for name, value in before.items() if version_of(value) != versions[name] or id(value) in past_autograd
        }
        if any(version_of(x) != version for x, version in inputs):
            written.add(INPUTS)
        self._learn(written, own, after)
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

    def _learn(self, written: set[str], own: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
        writes = self.skeletons.writes
        surprising = {name for name in written if not writes.may_write(name) and name not in own}
        writes.names |= written
        writes.reshaped |= {name for name, value in after.items() if value.shape != self.state[name].shape}
        writes.known = True
        if surprising:
            raise UsageError(
                f"forward changed {min(surprising)!r} in place, which it did not do in its first call, so the caller's "
                "tensor changed too. Write `x = x + 1` for `x += 1` there, or run forward once on such inputs first."
            )


def _is_differentiated(nest: Any) -> bool:
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return True
    return torch.is_grad_enabled() and any(leaf.requires_grad for leaf in tree.tensors(nest))
