"""The meter of memory counts bytes that are known in advance."""

import gc

import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp, vjp, vmap

from metalearn.metagrad.memory import peak_bytes

KB = torch.ones(256)  # 1024 bytes
N = 1024


def chain(x: Tensor) -> Tensor:
    for _ in range(10):
        x = x.exp()  # autograd keeps its result
    return x.sum()


def test_results_count_while_they_are_alive() -> None:
    def one_at_a_time() -> None:
        for _ in range(5):
            torch.ones(256)

    def all_at_once() -> list[Tensor]:
        return [torch.ones(256) for _ in range(5)]

    assert peak_bytes(one_at_a_time, "cpu") == N
    assert peak_bytes(all_at_once, "cpu") == 5 * N


def test_views_and_writes_into_what_was_there_take_nothing() -> None:
    there = torch.zeros(256)

    def work() -> Tensor:
        there.view(16, 16).t().add_(1)
        torch.exp(KB, out=there)
        return there.detach()[:3]

    assert peak_bytes(work, "cpu") == 0
    assert peak_bytes(lambda: torch.ones(256).view(2, 128)[0], "cpu") == N, "a view keeps the whole storage"


def test_a_storage_that_grows_is_counted_anew() -> None:
    assert peak_bytes(lambda: torch.ones(256).resize_(1024), "cpu") == 4 * N


def test_what_only_an_autograd_graph_keeps_counts() -> None:
    x = KB.clone().requires_grad_()
    assert peak_bytes(lambda: chain(x), "cpu") == 10 * N + 4  # and the sum
    with torch.no_grad():
        assert peak_bytes(lambda: chain(x), "cpu") == 2 * N, "one result and the next"


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")  # torch's own, at the first jvp
@pytest.mark.parametrize("wrap", [lambda f: f, vmap], ids=["plain", "vmap"])
def test_the_transforms_of_torch_func_hide_nothing(wrap) -> None:
    x = KB.reshape(4, 64)

    def plain(x: Tensor) -> Tensor:
        return chain(x) if wrap is vmap else chain(x.reshape(-1))

    of_first_order = peak_bytes(lambda: wrap(grad(plain))(x), "cpu")
    assert 10 * N < of_first_order < 25 * N
    # The graph of a gradient of a gradient holds the ten results, and as much again and more for the backward pass.
    of_second_order = peak_bytes(lambda: wrap(grad(lambda x: grad(plain)(x).sum()))(x), "cpu")
    assert of_second_order > 20 * N
    assert peak_bytes(lambda: wrap(lambda x: vjp(plain, x)[0])(x), "cpu") >= 10 * N
    of_forward_mode = peak_bytes(lambda: wrap(lambda x: jvp(plain, (x,), (x,)))(x), "cpu")
    assert of_forward_mode < 6 * N, "forward mode keeps nothing"


def test_plain_and_functional_gradients_take_the_same() -> None:
    x = KB.clone().requires_grad_()

    def pulled() -> Tensor:
        value, pull = vjp(chain, KB)
        return pull(torch.ones_like(value), retain_graph=False, create_graph=False)[0]

    plain = peak_bytes(lambda: torch.autograd.grad(chain(x), x)[0], "cpu")
    assert abs(peak_bytes(pulled, "cpu") - plain) <= N, "one tensor that is let go later"


def test_nothing_stays_behind() -> None:
    results: list[Tensor] = []
    assert peak_bytes(lambda: results.append(torch.ones(256)), "cpu") == N
    address = results[0].data_ptr()
    results.clear()  # freed after the meter is off: its callback must not fail
    gc.collect()
    assert address
    assert peak_bytes(lambda: torch.ones(256), "cpu") == N


def test_an_error_of_the_work_is_the_callers() -> None:
    def work() -> None:
        raise RuntimeError("of the work")

    with pytest.raises(RuntimeError, match="of the work"):
        peak_bytes(work, "cpu")
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpus_allocator_is_asked() -> None:
    mebibytes = peak_bytes(lambda: torch.ones(2**20, device="cuda") + 1, "cuda") / 2**20
    assert mebibytes == 8
