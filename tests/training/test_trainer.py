import json
import os
import signal
import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from metalearn import algorithms, execution, losses, metagrad
from metalearn.errors import UsageError
from metalearn.models import MLP, Conv4
from metalearn.tasks import Sinusoid
from metalearn.training import (
    Interrupted,
    TrainingSettings,
    evaluate,
    find_checkpoint,
    load_checkpoint,
    resolve_device,
    run_status,
    train,
)
from metalearn.training.protocol import model_card
from metalearn.training.run_directory import claimed


class StopAt:
    """A logger that sends this process a signal when a record of that step and split comes."""

    def __init__(self, step: int, split: str = "train", *, number: int = signal.SIGTERM, times: int = 1) -> None:
        self.at, self.number, self.times, self.finished = (step, split), number, times, "not yet"

    def start(self, run_directory: Path, config: Mapping[str, Any], *, step: int) -> None:
        pass

    def log(self, step: int, metrics: Mapping[str, float], *, split: str) -> None:
        if (step, split) == self.at:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)

    def finish(self, results: Mapping[str, Any] | None) -> None:
        self.finished = "with results" if results else "without results"


class Noisy(Sinusoid):
    """Its training episodes of one meta step are too large for the squares of float32."""

    def episodes(self, split, indices, *, seed=0):
        found = super().episodes(split, indices, seed=seed)
        if split == "train" and 9 in list(indices):
            found = found._replace(query=(found.query[0], found.query[1] * 1e30))
        return found

    def to(self, device):
        return self


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def tensors(folder: Path, content) -> list[bytes]:
    return [content(folder / "checkpoints" / name) for name in ("last", "best")]


def without_time(results: Mapping[str, Any]) -> dict[str, Any]:
    return {**results, "protocol": {**results["protocol"], "wall_time_seconds": None}}


def test_run_directory_is_complete(tmp_path: Path, make_experiment) -> None:
    results = train(make_experiment(), tmp_path / "run")
    found = {path.relative_to(tmp_path / "run").as_posix() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert {"metrics.jsonl", "results.json", "curves.png", "fit.png"} <= found
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == results.data
    assert run_status(tmp_path / "run") == "finished"
    lines = [(record["step"], record["split"]) for record in records(tmp_path / "run")]
    assert lines[:6] == [(2, "train"), (2, "val"), (4, "train"), (4, "val"), (6, "train"), (6, "val")]
    assert lines[6][1] == "test"
    assert len(lines) == 7


def test_results_hold_the_protocol(tmp_path: Path, make_experiment) -> None:
    data = train(make_experiment(), tmp_path).data
    assert data["test"]["loss"]["num_episodes"] == 6
    assert len(data["test_by_step"]["loss"]) == 3
    assert data["test_by_step"]["loss"][2] == data["test"]["loss"]
    assert data["baseline"]["loss"] == data["baseline_by_step"]["loss"][2]
    card = data["protocol"]
    expected = {
        "dataset": "sinusoid", "split": "test", "shots": 5, "inner_steps_train": 1, "inner_steps_test": 2,
        "inner_lr_train": 0.01, "normalisation": "none", "transductive": False, "meta_batch_size": 3, "meta_steps": 6,
        "seed": 0, "inner_optimizer": "sgd", "checkpoint": "best on validation", "num_threads": torch.get_num_threads(),
        "model_details": {"model": "mlp", "hidden": [8], "init": "torch"},
    }  # fmt: skip
    assert {name: card[name] for name in expected} == expected
    assert "filters" not in card
    assert card["versions"]["torch"] == str(torch.__version__)
    assert card["device"].startswith("cpu")


def test_same_command_twice_gives_the_same_bytes(tmp_path: Path, make_experiment, content) -> None:
    one, two = (train(make_experiment(), tmp_path / name).data for name in "ab")
    assert (tmp_path / "a/metrics.jsonl").read_bytes() == (tmp_path / "b/metrics.jsonl").read_bytes()
    assert tensors(tmp_path / "a", content) == tensors(tmp_path / "b", content)
    assert without_time(one) == without_time(two)


def test_the_users_module_and_the_global_generator_are_untouched(tmp_path: Path, make_experiment) -> None:
    experiment = make_experiment()
    before = {name: value.clone() for name, value in experiment.module.state_dict().items()}
    generator = torch.get_rng_state()
    train(experiment, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in experiment.module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize(
    ("at", "number"),
    [
        ((2, "train"), signal.SIGINT),
        ((2, "val"), signal.SIGTERM),
        ((4, "train"), signal.SIGTERM),
        ((6, "train"), signal.SIGTERM),
        ((6, "val"), signal.SIGINT),
        ((6, "test"), signal.SIGINT),
    ],
)
def test_interrupted_and_resumed_is_bit_identical(tmp_path: Path, make_experiment, content, at, number) -> None:
    # Each record comes at another place of the loop; log_every=2 leaves sums to be carried over.
    whole = train(make_experiment(), tmp_path / "whole").data
    stop = StopAt(*at, number=number)
    if at == (6, "test"):
        stop.times = 2  # past the last batch nothing asks any more: force it
        with pytest.raises(KeyboardInterrupt):
            train(make_experiment(), tmp_path / "parts", logger=stop)
    else:
        with pytest.raises(Interrupted, match="RESUME ME") as caught:
            train(make_experiment(), tmp_path / "parts", logger=stop, resume_command="RESUME ME")
        assert caught.value.step == at[0]
        assert run_status(tmp_path / "parts") == "interrupted"
    assert stop.finished == "without results"
    resumed = train(make_experiment(), tmp_path / "parts", resume=True).data
    assert (tmp_path / "parts/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()
    assert tensors(tmp_path / "parts", content) == tensors(tmp_path / "whole", content)
    assert without_time(resumed) == without_time(whole)


def test_interrupted_at_every_step_inside_the_log_window(tmp_path: Path, make_experiment, content) -> None:
    settings = {"log_every": 5, "eval_every": 3, "schedule": lambda step: 1 / (1 + step), "clip": 0.5}
    train(make_experiment(**settings), tmp_path / "whole")

    class Stopping(Sinusoid):
        last = -1

        def episodes(self, split, indices, *, seed=0):
            first = next(iter(indices))
            if split == "train" and len(indices) == 3 and first > Stopping.last:  # not the look at two before it all
                Stopping.last = first
                os.kill(os.getpid(), signal.SIGTERM)
            return super().episodes(split, indices, seed=seed)

    source = Stopping(shots=5, query_shots=5)
    for step in range(6):
        with pytest.raises(Interrupted) as caught:
            train(make_experiment(source=source, **settings), tmp_path / "parts", resume=step > 0)
        assert caught.value.step == step + 1
    train(make_experiment(source=source, **settings), tmp_path / "parts", resume=True)
    assert (tmp_path / "parts/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()
    assert tensors(tmp_path / "parts", content) == tensors(tmp_path / "whole", content)


def test_killed_run_goes_on_from_its_last_checkpoint(tmp_path: Path, make_experiment, content) -> None:
    train(make_experiment(), tmp_path / "whole")
    stop = StopAt(4, "train", times=2)  # a second signal stops at once: nothing is saved after step 3
    with pytest.raises(KeyboardInterrupt):
        train(make_experiment(), tmp_path / "parts", logger=stop)
    with (tmp_path / "parts/metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "spl')  # cut in the middle of a line, as a power cut may
    train(make_experiment(), tmp_path / "parts", resume=True)
    assert (tmp_path / "parts/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()
    assert tensors(tmp_path / "parts", content) == tensors(tmp_path / "whole", content)


def test_running_statistics_survive_a_resumption(tmp_path: Path, make_experiment, content) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
    train(make_experiment(module=module), tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(make_experiment(module=module), tmp_path / "parts", logger=StopAt(4, "train"))
    train(make_experiment(module=module), tmp_path / "parts", resume=True)
    assert tensors(tmp_path / "parts", content) == tensors(tmp_path / "whole", content)
    last = load_checkpoint(tmp_path / "whole/checkpoints/last")
    assert not last.buffers["1.running_mean"].eq(0).all()
    assert int(last.buffers["1.num_batches_tracked"]) > 6
    assert module[1].running_mean.eq(0).all()


def test_handlers_are_back_afterwards(tmp_path: Path, make_experiment) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Interrupted):
        train(make_experiment(), tmp_path, logger=StopAt(2))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_trains_in_a_thread_where_python_allows_no_handlers(tmp_path: Path, make_experiment) -> None:
    thread = threading.Thread(target=train, args=(make_experiment(), tmp_path))
    thread.start()
    thread.join()
    assert run_status(tmp_path) == "finished"


def test_the_loop_is_that_of_plain_torch(tmp_path: Path, make_experiment) -> None:
    experiment = make_experiment(val_episodes=0, clip=0.7, schedule=lambda step: 0.5**step)
    train(experiment, tmp_path)
    found = load_checkpoint(tmp_path / "checkpoints/last").meta

    params = {name: value.detach().clone() for name, value in experiment.module.named_parameters()}
    for value in params.values():
        value.requires_grad_()
    optimizer = torch.optim.Adam(params.values(), lr=1e-2)
    for step in range(6):
        support, query, _ = experiment.source.episodes("train", range(3 * step, 3 * step + 3), seed=0)
        optimizer.zero_grad()
        total = 0.0
        for task in range(3):
            call = partial(torch.func.functional_call, experiment.module)
            inner = (call(params, (support[0][task],)) - support[1][task]).square().mean()
            grads = torch.autograd.grad(inner, list(params.values()), create_graph=True)
            adapted = {name: value - 0.01 * grad for (name, value), grad in zip(params.items(), grads, strict=True)}
            total = total + (call(adapted, (query[0][task],)) - query[1][task]).square().mean() / 3
        total.backward()
        torch.nn.utils.clip_grad_norm_(params.values(), 0.7)
        optimizer.param_groups[0]["lr"] = 1e-2 * 0.5**step
        optimizer.step()
    for name, value in params.items():
        torch.testing.assert_close(found[f"init.{name}"], value.detach(), rtol=1e-4, atol=1e-6)


def test_best_checkpoint_is_the_best_validation_and_is_what_is_tested(tmp_path: Path, make_experiment) -> None:
    experiment = make_experiment(num_steps=10, outer_optimizer=partial(torch.optim.Adam, lr=0.5), checkpoint_every=100)
    data = train(experiment, tmp_path).data
    validated = {record["step"]: record["loss"] for record in records(tmp_path) if record["split"] == "val"}
    best = min(validated, key=validated.__getitem__)
    assert best != 10  # the rate is too high for the last to be the best: else this would test nothing
    assert load_checkpoint(tmp_path / "checkpoints/best").step == best
    assert data["protocol"]["meta_steps_of_checkpoint"] == best
    last = evaluate(experiment, tmp_path / "checkpoints" / "last").data
    assert last["test"]["loss"] != data["test"]["loss"]


def test_without_validation_the_last_is_tested(tmp_path: Path, make_experiment) -> None:
    data = train(make_experiment(eval_every=0, baseline=False), tmp_path).data
    assert find_checkpoint(tmp_path).name == "last"
    assert data["protocol"]["checkpoint"] == "last"
    assert data["protocol"]["meta_steps_of_checkpoint"] == 6
    assert "val" not in data
    assert "baseline" not in data


def test_baseline_is_the_untrained_run(tmp_path: Path, make_experiment) -> None:
    trained = train(make_experiment(), tmp_path / "a").data
    untrained = train(make_experiment(num_steps=0), tmp_path / "b").data
    assert untrained["test_by_step"] == trained["baseline_by_step"]
    assert untrained["test_by_step"] == untrained["baseline_by_step"]
    assert trained["test"]["loss"]["mean"] != trained["baseline"]["loss"]["mean"]


def test_evaluate_gives_the_numbers_of_the_run(tmp_path: Path, make_experiment) -> None:
    experiment = make_experiment()
    data = train(experiment, tmp_path).data
    again = evaluate(experiment, tmp_path).data
    for name in ("test", "test_by_step", "baseline", "baseline_by_step"):
        assert again[name] == data[name]
    more = evaluate(experiment, tmp_path, num_episodes=9, num_inner_steps=4, split="val", baseline=False)
    assert more.data["val"]["loss"]["num_episodes"] == 9
    assert len(more.data["val_by_step"]["loss"]) == 5
    assert more.data["protocol"]["inner_steps_test"] == 4
    assert "baseline" not in more.data
    with pytest.raises(UsageError, match="tset"):
        evaluate(experiment, tmp_path, split="tset")


@pytest.mark.parametrize("wrong", [{"num_episodes": 0}, {"num_episodes": -1}, {"num_inner_steps": -1}])
def test_evaluate_refuses_numbers_that_make_no_sense(tmp_path: Path, make_experiment, wrong) -> None:
    train(make_experiment(), tmp_path)
    with pytest.raises(UsageError):
        evaluate(make_experiment(), tmp_path, **wrong)


def test_evaluate_refuses_a_checkpoint_of_another_model(tmp_path: Path, make_experiment) -> None:
    train(make_experiment(), tmp_path)
    other = make_experiment(module=MLP(input_shape=(1,), num_outputs=1, hidden=(9,)))
    with pytest.raises(UsageError, match="does not fit"):
        evaluate(other, tmp_path)


def test_loop_and_vmap_train_alike(tmp_path: Path, make_experiment) -> None:
    train(make_experiment(), tmp_path / "vmap")
    train(make_experiment(execution=execution.Loop()), tmp_path / "loop")
    one, two = (load_checkpoint(tmp_path / name / "checkpoints/last").meta for name in ("vmap", "loop"))
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], rtol=1e-3, atol=1e-5)


def test_divergence_names_the_step_and_keeps_the_state_before(tmp_path: Path, make_experiment) -> None:
    experiment = make_experiment(source=Noisy(shots=5, query_shots=5), checkpoint_every=100)
    with pytest.raises(UsageError, match=r"inf.* step 4") as caught:
        train(experiment, tmp_path)
    assert "inner.lr" in str(caught.value)
    assert "meta.lr" in str(caught.value)
    assert "meta.clip" not in str(caught.value)  # it mends no loss that is no number
    for name, step in (("last", 3), ("best", 2)):
        kept = load_checkpoint(tmp_path / "checkpoints" / name)
        assert kept.step == step
        assert all(value.isfinite().all() for value in kept.meta.values())


def test_accuracy_decides_for_a_classification(tmp_path: Path, make_experiment) -> None:
    class Signs(Sinusoid):
        kind = "classification"

        def __init__(self, **given):
            super().__init__(**given)
            self.num_outputs = 2

        def episodes(self, split, indices, *, seed=0):
            found = super().episodes(split, indices, seed=seed)
            labels = [((x, y[..., 0].gt(0).long())) for x, y in (found.support, found.query)]
            return found._replace(support=labels[0], query=labels[1])

    algorithm = algorithms.MAML(loss=losses.cross_entropy, inner_lr=0.1)
    module = MLP(input_shape=(1,), num_outputs=2, hidden=(8,))
    results = train(
        make_experiment(source=Signs(shots=5), module=module, algorithm=algorithm, strategy=metagrad.FirstOrder()),
        tmp_path,
    )
    validated = [(record["accuracy"], -record["step"]) for record in records(tmp_path) if record["split"] == "val"]
    assert results.data["protocol"]["meta_steps_of_checkpoint"] == -max(validated)[1]
    assert 0 <= results.data["test"]["accuracy"]["mean"] <= 1
    assert not (tmp_path / "fit.png").exists()
    assert "%" in results.summary()


@pytest.mark.parametrize(
    ("norm", "transductive"), [("batch", True), ("batch_running", False), ("layer", False), ("none", False)]
)
def test_card_says_whether_the_normalisation_is_transductive(norm: str, transductive: bool) -> None:
    card = model_card(Conv4(input_shape=(1, 28, 28), num_outputs=5, filters=8, norm=norm))
    assert card["transductive"] is transductive
    assert card["filters"] == 8
    assert (card["normalisation"] == "none") == (norm == "none")


def test_finished_unfinished_and_foreign_folders_are_refused(tmp_path: Path, make_experiment) -> None:
    train(make_experiment(), tmp_path / "done")
    for resume in (False, True):
        with pytest.raises(UsageError, match="finished run"):
            train(make_experiment(), tmp_path / "done", resume=resume)
    with pytest.raises(Interrupted):
        train(make_experiment(), tmp_path / "half", logger=StopAt(2))
    before = (tmp_path / "half/metrics.jsonl").read_bytes()
    with pytest.raises(UsageError, match="unfinished run"):
        train(make_experiment(), tmp_path / "half")
    assert (tmp_path / "half/metrics.jsonl").read_bytes() == before
    with pytest.raises(UsageError, match="no checkpoint"):
        train(make_experiment(), tmp_path / "nothing", resume=True)
    assert not (tmp_path / "nothing").exists()


def test_resuming_with_another_configuration_is_refused(tmp_path: Path, make_experiment) -> None:
    with pytest.raises(Interrupted):
        train(make_experiment(), tmp_path, logger=StopAt(2))
    with pytest.raises(UsageError, match=r"meta.lr: 0.01 then, 0.5 now"):
        train(make_experiment(config={"meta": {"lr": 0.5, "num_steps": 6}}), tmp_path, resume=True)
    other_logger = {"meta": {"lr": 1e-2, "num_steps": 6}, "logger": {"name": "wandb"}}
    train(make_experiment(config=other_logger), tmp_path, resume=True)


def test_metrics_that_are_shorter_than_the_checkpoint_are_refused(tmp_path: Path, make_experiment) -> None:
    with pytest.raises(Interrupted):
        train(make_experiment(), tmp_path, logger=StopAt(4))
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(UsageError, match="has 0 records"):
        train(make_experiment(), tmp_path, resume=True)


@pytest.mark.parametrize("garbage", [b"not json", b'{"step": "two", "split": "train"}', b"[1]", b"\xff"])
def test_metrics_that_are_no_records_are_refused_before_a_step_is_done(
    tmp_path: Path, make_experiment, garbage
) -> None:
    with pytest.raises(Interrupted):
        train(make_experiment(), tmp_path, logger=StopAt(4))
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([lines[0], garbage, *lines[2:]]) + b"\n")
    before = path.read_bytes()
    with pytest.raises(UsageError, match="line 2 is no record"):
        train(make_experiment(), tmp_path, resume=True)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("best", {"step": 2}),
        ("best", {"step": 2, "metrics": {"loss": 1.0}}),
        ("validated", "two"),
        ("window", [1]),
        ("window_steps", None),
        ("num_records", -1),
        ("wall_time", "long"),
    ],
)
def test_a_damaged_entry_of_a_checkpoint_is_named(tmp_path: Path, make_experiment, name: str, value: Any) -> None:
    with pytest.raises(Interrupted):
        train(make_experiment(), tmp_path, logger=StopAt(4))
    path = tmp_path / "checkpoints/last/state.json"
    state = json.loads(path.read_text())
    path.write_text(json.dumps({**state, "loop": {**state["loop"], name: value}}))
    for action in (
        lambda: train(make_experiment(), tmp_path, resume=True),
        lambda: evaluate(make_experiment(), path.parent),
    ):
        with pytest.raises(UsageError, match=rf"is damaged: loop\.{name} in its state\.json is"):
            action()


def test_the_folder_is_claimed_while_a_run_lasts(tmp_path: Path, make_experiment) -> None:
    seen: list[str] = []

    class Second(StopAt):
        def start(self, run_directory: Path, config: Mapping[str, Any], *, step: int) -> None:
            # A thread of its own stands for another process: the same thread may claim a folder again.
            thread = threading.Thread(target=self.claim)
            thread.start()
            thread.join()

        def claim(self) -> None:
            try:
                with claimed(tmp_path, resume=False):
                    seen.append("let in")
            except UsageError as error:
                seen.append(str(error))

    train(make_experiment(), tmp_path, logger=Second(10**6))
    assert seen == [f"{tmp_path} is in use by another run. Wait for its end, or choose another hydra.run.dir."]
    assert not (tmp_path / ".lock").exists()


def test_folder_that_can_not_be_written(tmp_path: Path, make_experiment) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="can not be written"):
        train(make_experiment(), tmp_path / "file" / "run")


def test_logger_that_does_not_start_leaves_the_folder_free(tmp_path: Path, make_experiment) -> None:
    class Missing(StopAt):
        def start(self, run_directory: Path, config: Mapping[str, Any], *, step: int) -> None:
            raise UsageError("not installed")

    with pytest.raises(UsageError, match="not installed"):
        train(make_experiment(), tmp_path, logger=Missing(0))
    assert run_status(tmp_path) == "empty"
    train(make_experiment(), tmp_path)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"num_steps": -1}, "meta.num_steps is -1"),
        ({"num_steps": 1.5}, "meta.num_steps is 1.5"),
        ({"batch_size": 0}, "meta.batch_size is 0"),
        ({"seed": 2**63}, "seed is 9223372036854775808"),
        ({"eval_every": -2}, "eval.every is -2"),
        ({"num_inner_steps_eval": -1}, "eval.num_inner_steps is -1"),
        ({"test_episodes": True}, "eval.num_episodes is True"),
        ({"clip": 0.0}, "meta.clip is 0.0"),
        ({"clip": float("nan")}, "meta.clip is nan"),
    ],
)
def test_settings_that_make_no_run(wrong, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        TrainingSettings(**({"num_steps": 1, "batch_size": 1} | wrong))


def test_optimizers_that_are_refused(tmp_path: Path, make_experiment) -> None:
    with pytest.raises(UsageError, match=r"Invalid learning rate.*meta\.lr"):
        train(make_experiment(outer_optimizer=partial(torch.optim.Adam, lr=-1.0)), tmp_path)
    with pytest.raises(UsageError, match="LBFGS"):
        train(make_experiment(outer_optimizer=torch.optim.LBFGS), tmp_path)


def test_split_that_the_task_does_not_have(tmp_path: Path, make_experiment) -> None:
    class TwoSplits(Sinusoid):
        splits = ("train", "test")

    source = TwoSplits(shots=5, query_shots=5)
    with pytest.raises(UsageError, match=r"'val'.*eval\.val_episodes=0|eval\.val_episodes=0.*'val'"):
        train(make_experiment(source=source), tmp_path)
    train(make_experiment(source=source, val_episodes=0), tmp_path)


@pytest.mark.parametrize("name", ["cuda:99", "cupu", "meta:x"])
def test_device_that_is_not_there(name: str) -> None:
    with pytest.raises(UsageError, match="device="):
        resolve_device(name)


def test_devices_that_are_there() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
