"""What a module keeps beside its state is, in every call, as it was when the module was functionalized."""

from collections import Counter, OrderedDict, defaultdict, deque

import pytest
import torch
from torch import nn
from torch.func import grad, vmap

from metalearn import UsageError, functionalize


class _Keeps(nn.Module):
    """Keeps something in an attribute, and gives out how much of it there is."""

    def __init__(self, kept) -> None:
        super().__init__()
        self.kept = kept

    def forward(self, x):
        kept = self.kept
        if isinstance(kept, dict) and "inner" in kept:
            kept = kept["inner"][0]
        if isinstance(kept, tuple):
            kept = kept[0]
        if isinstance(kept, torch.Tensor):
            return x * kept.add_(1)
        if isinstance(kept, dict):
            kept[len(kept)] = 1
        elif isinstance(kept, set):
            kept.add(len(kept))
        else:
            kept.append(1)
        return x * len(kept)


@pytest.mark.parametrize(
    "make",
    [
        list, set, dict, deque, bytearray, OrderedDict, Counter, lambda: defaultdict(int), lambda: {"inner": [[]]},
        lambda: ([],), lambda: torch.zeros(2), lambda: {"inner": [torch.zeros(2)]},
    ],
)  # fmt: skip
def test_what_forward_writes_into_an_attribute_is_forgotten(make) -> None:
    module, x = _Keeps(make()), torch.ones(2)
    before = repr(module.kept)
    model = functionalize(module)
    for _ in range(3):
        assert torch.equal(model({}, model.buffers, x)[0], x)
    assert torch.equal(grad(lambda x: model({}, model.buffers, x)[0].sum())(x), x)
    assert repr(module.kept) == before


def test_a_tensor_in_an_attribute_may_be_written_into_by_every_task() -> None:
    class Sums(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scratch = torch.zeros(2)

        def forward(self, x):
            self.scratch += x
            return self.scratch * x

    module, xs = Sums(), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    model = functionalize(module)
    gradients = vmap(grad(lambda x: model({}, model.buffers, x)[0].sum()))(xs)
    assert torch.equal(gradients, 2 * xs)
    assert torch.equal(module.scratch, torch.zeros(2))


def test_a_list_that_two_parts_share_is_one_in_a_call() -> None:
    class Part(nn.Module):
        def __init__(self, shared: list) -> None:
            super().__init__()
            self.shared = shared

        def forward(self, x):
            self.shared.append(x)
            return sum(self.shared)

    shared: list = []
    module = nn.Sequential(Part(shared), Part(shared))
    model, x = functionalize(module), torch.ones(1)
    for _ in range(2):
        assert model({}, model.buffers, x)[0].item() == 2
    assert shared == []
    assert module(x).item() == 2


def test_an_attribute_in_the_place_of_another_is_forgotten_too() -> None:
    class Swaps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = 1

        def forward(self, x):
            if hasattr(self, "second"):
                return x * 10
            del self.first
            self.second = 1
            return x

    model = functionalize(Swaps())
    assert [model({}, model.buffers, torch.ones(1))[0].item() for _ in range(3)] == [1, 1, 1]


def test_a_submodule_that_forward_replaces_is_there_again() -> None:
    class Wraps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Identity()

        def forward(self, x):
            y = self.last(x)
            self.last = nn.Sequential(self.last, nn.Tanh())
            return y

    module = Wraps()
    model = functionalize(module)
    for _ in range(3):
        assert torch.equal(model({}, model.buffers, torch.ones(2))[0], torch.ones(2))
    assert isinstance(module.last, nn.Identity)


@pytest.mark.parametrize("register", ["register_buffer", "register_parameter"])
def test_state_registered_as_none_must_stay_so(register: str) -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            getattr(self, register)("late", None)

        def forward(self, x):
            self.late = nn.Parameter(x) if register == "register_parameter" else x
            return x

    model = functionalize(Late())
    for _ in range(2):
        with pytest.raises(UsageError, match="'late', which was registered as None"):
            model({}, model.buffers, torch.ones(1))


class _Hooked(nn.Module):
    """A hook of its own that counts calls, and one that forward registers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Linear(2, 2), 0
        self.layer.register_forward_hook(self.count)

    def count(self, module, args, output):
        self.calls += 1
        return output * self.calls

    def forward(self, x):
        self.layer.register_forward_hook(lambda module, args, output: output + 1)
        return self.layer(x)


def test_hooks_see_the_call_and_leave_nothing_behind() -> None:
    module, x = _Hooked(), torch.ones(3, 2)
    model = functionalize(module)
    first = model(model.params, model.buffers, x)[0]
    assert torch.equal(model(model.params, model.buffers, x)[0], first)
    assert (module.calls, len(module.layer._forward_hooks)) == (0, 1)
    torch.testing.assert_close(first, module(x), rtol=0, atol=0)


def test_hooks_with_keywords_and_of_the_backward_pass() -> None:
    module = nn.Sequential(nn.Tanh(), nn.Linear(2, 2)).double()
    module[1].register_forward_pre_hook(lambda module, args, kwargs: ((args[0] * 2,), kwargs), with_kwargs=True)
    module[1].register_full_backward_hook(lambda module, grads, _: tuple(3 * each for each in grads))
    model = functionalize(module)
    xs = [torch.ones(3, 2, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    outputs = [module(xs[0]), model(model.params, model.buffers, xs[1])[0]]
    for output in outputs:
        output.sum().backward()
    assert torch.equal(*outputs)
    assert torch.equal(xs[0].grad, xs[1].grad)
    with pytest.raises(UsageError, match="full backward hook, remove that"):
        grad(lambda x: model(model.params, model.buffers, x)[0].sum())(xs[1].detach())


def test_after_an_error_in_forward_all_is_as_before() -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("total", torch.zeros(1))
            self.calls, self.seen = 0, []

        def forward(self, x, fails):
            self.total += 1
            self.calls += 1
            self.seen.append(x)
            if fails:
                raise ValueError("boom")
            return x * self.total * self.calls * len(self.seen)

    module, x = Fails(), torch.ones(1)
    model = functionalize(module)
    for fails in (True, False, True, False):
        if fails:
            with pytest.raises(ValueError, match="boom"):
                model({}, model.buffers, x, fails)
        else:
            assert torch.equal(model({}, model.buffers, x, fails)[0], x)
    assert (module.calls, module.seen, module.total.item(), model.buffers["total"].item()) == (0, [], 0, 0)
