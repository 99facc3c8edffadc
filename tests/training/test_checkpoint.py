import json
import pickle
from pathlib import Path

import pytest
import torch

from metalearn.errors import UsageError
from metalearn.training import Checkpoint, find_checkpoint, load_checkpoint, save_checkpoint
from metalearn.training import checkpoint as module
from metalearn.training.checkpoint import check_fits
from metalearn.training.nests import decode, encode


def saved(folder: Path, *, step: int = 3, value: float = 1.0) -> Checkpoint:
    made = Checkpoint(
        step=step,
        meta={"init.w": torch.full((2, 2), value), "lr.w": torch.tensor(0.1, dtype=torch.float64)},
        buffers={"rng": torch.tensor(7), "mean": torch.zeros(0)},
        loop={"best": None, "window": {"loss": 0.1 + 0.2}},
        config={"a": [1, None, "x"]},
    )
    save_checkpoint(made, folder)
    return made


def state(folder: Path) -> dict:
    return json.loads((folder / "state.json").read_text())


def test_round_trip_keeps_every_value_and_dtype(tmp_path: Path) -> None:
    made = saved(tmp_path / "c")
    read = load_checkpoint(tmp_path / "c")
    assert (read.step, read.loop, read.config) == (made.step, made.loop, made.config)
    for before, after in ((made.meta, read.meta), (made.buffers, read.buffers)):
        assert list(before) == list(after)  # in order: an optimizer knows its parameters by position
        for name, value in before.items():
            assert after[name].dtype == value.dtype
            assert torch.equal(after[name], value)


@pytest.mark.parametrize(
    "make",
    [
        lambda tensors: torch.optim.Adam(tensors, lr=0.1, amsgrad=True),
        lambda tensors: torch.optim.SGD(tensors, lr=0.1, momentum=0.9, nesterov=True),
        lambda tensors: torch.optim.SGD(tensors, lr=0.1),
        lambda tensors: torch.optim.RMSprop(tensors, lr=0.1, centered=True),
        lambda tensors: torch.optim.AdamW([{"params": tensors[:1], "lr": 0.5}, {"params": tensors[1:]}], lr=0.1),
    ],
)
def test_optimizer_goes_on_with_the_same_bits(tmp_path: Path, make) -> None:
    def steps(optimizer: torch.optim.Optimizer, tensors: list[torch.Tensor], seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(3):
            for tensor in tensors:
                tensor.grad = torch.randn(tensor.shape, generator=generator)
            optimizer.step()

    tensors = [torch.ones(3), torch.ones(2, 2)]
    optimizer = make(tensors)
    steps(optimizer, tensors, 0)
    meta = {"a": tensors[0].clone(), "b": tensors[1].clone()}
    save_checkpoint(Checkpoint(step=3, meta=meta, buffers={}, optimizer=optimizer.state_dict()), tmp_path)
    read = load_checkpoint(tmp_path)
    again = list(read.meta.values())
    resumed = make(again)
    resumed.load_state_dict(read.optimizer)
    steps(optimizer, tensors, 1)
    steps(resumed, again, 1)
    assert all(torch.equal(one, other) for one, other in zip(tensors, again, strict=True))


def test_tensors_that_share_storage_and_are_not_contiguous_are_saved(tmp_path: Path) -> None:
    base = torch.arange(6.0).reshape(2, 3)
    save_checkpoint(Checkpoint(step=0, meta={"a": base, "b": base.T}, buffers={}), tmp_path)
    assert torch.equal(load_checkpoint(tmp_path).meta["b"], base.T)


def test_nest_round_trip_and_refusal() -> None:
    nest = {0: (1, 2.5, None), "b": [True, {"t": torch.ones(2)}], "c": ()}
    encoded, tensors = encode(nest, "x/")
    back = decode(json.loads(json.dumps(encoded)), tensors)
    assert back[0] == (1, 2.5, None)
    assert back["c"] == ()
    assert torch.equal(back["b"][1]["t"], torch.ones(2))
    with pytest.raises(TypeError, match="object can not be saved"):
        encode({"a": object()}, "x/")


@pytest.mark.parametrize("failing", [1, 2])
def test_crash_between_the_writes_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch, failing: int) -> None:
    saved(tmp_path, step=1, value=1.0)
    calls = []
    write = module.write_atomically

    def crash(path: Path, content: bytes) -> None:
        calls.append(path)
        if len(calls) == failing:
            raise KeyboardInterrupt
        write(path, content)

    monkeypatch.setattr(module, "write_atomically", crash)
    with pytest.raises(KeyboardInterrupt):
        saved(tmp_path, step=2, value=2.0)
    read = load_checkpoint(tmp_path)
    assert read.step == 1
    assert read.meta["init.w"].eq(1).all()
    monkeypatch.setattr(module, "write_atomically", write)
    saved(tmp_path, step=3, value=3.0)
    assert load_checkpoint(tmp_path).step == 3
    assert len(list(tmp_path.iterdir())) == 2  # what the crash left is gone


def test_full_disk_is_a_usage_error_and_keeps_the_old(tmp_path: Path, monkeypatch) -> None:
    saved(tmp_path, step=1)

    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_atomically", full)
    with pytest.raises(UsageError, match="No space left on device"):
        saved(tmp_path, step=2)
    assert load_checkpoint(tmp_path).step == 1


def edit(folder: Path, **changes) -> None:
    (folder / "state.json").write_text(json.dumps(state(folder) | changes))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "state.json").write_text("{"), "not JSON"),
        (lambda folder: (folder / "state.json").write_bytes(b"\xff\xfe\x00"), "not JSON"),
        (lambda folder: (folder / "state.json").write_text("[]"), "not one of metalearn's"),
        (lambda folder: (folder / "state.json").write_text('{"format": "other"}'), "not one of metalearn's"),
        (lambda folder: edit(folder, version=99), "version is 99"),
        (lambda folder: edit(folder, loop=None), "incomplete"),
        (lambda folder: edit(folder, tensors={}), "incomplete"),
        (lambda folder: edit(folder, optimizer={"tensor": "optimizer/9"}), "incomplete"),
        (lambda folder: next(folder.glob("tensors-*")).unlink(), "No such file"),
        (lambda folder: next(folder.glob("tensors-*")).write_bytes(b"short"), "not what was written"),
        (lambda folder: (folder / "state.json").unlink(), "there is no checkpoint"),
    ],
)
def test_damage_is_named(tmp_path: Path, damage, reason: str) -> None:
    saved(tmp_path)
    damage(tmp_path)
    with pytest.raises(UsageError, match=reason) as caught:
        load_checkpoint(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_one_flipped_bit_is_noticed(tmp_path: Path) -> None:
    saved(tmp_path)
    path = next(tmp_path.glob("tensors-*"))
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(UsageError, match="not what was written"):
        load_checkpoint(tmp_path)


def test_a_pickle_is_not_executed(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    saved(tmp_path)
    path = next(tmp_path.glob("tensors-*"))
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UsageError):
        load_checkpoint(tmp_path)
    (tmp_path / "state.json").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UsageError):
        load_checkpoint(tmp_path)
    assert not (tmp_path / "executed").exists()


def test_tensor_file_is_looked_for_beside_the_state_only(tmp_path: Path) -> None:
    saved(tmp_path / "c")
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes(next((tmp_path / "c").glob("tensors-*")).read_bytes())
    edit(
        tmp_path / "c", tensors={"file": "../outside.safetensors", "sha256": state(tmp_path / "c")["tensors"]["sha256"]}
    )
    with pytest.raises(UsageError, match="No such file"):
        load_checkpoint(tmp_path / "c")


def test_find_prefers_best(tmp_path: Path) -> None:
    saved(tmp_path / "checkpoints" / "last")
    assert find_checkpoint(tmp_path) == tmp_path / "checkpoints" / "last"
    saved(tmp_path / "checkpoints" / "best")
    assert find_checkpoint(tmp_path) == tmp_path / "checkpoints" / "best"
    assert find_checkpoint(tmp_path / "checkpoints" / "last") == tmp_path / "checkpoints" / "last"
    assert find_checkpoint(tmp_path / "checkpoints/last/state.json") == tmp_path / "checkpoints" / "last"
    with pytest.raises(UsageError, match="is not there"):
        find_checkpoint(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no checkpoint"):
        find_checkpoint(tmp_path / "empty")


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({}, "has no buffer 'a.w'"),
        ({"a.v": torch.ones(2)}, "has no buffer 'a.w'.*a.v"),
        ({"a.w": torch.ones(2), "b": torch.ones(1)}, "'b' has no place"),
        ({"a.w": torch.ones(3)}, r"\(3,\).*\(2,\)"),
        ({"a.w": torch.ones(2, dtype=torch.float64)}, "float64"),
    ],
)
def test_misfit_is_named(found, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        check_fits(found, {"a.w": torch.ones(2)}, path=Path("x"), what="buffer")
