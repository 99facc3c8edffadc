"""`python -m metalearn.adapt`: what it writes, what it refuses and how, and that the function of its name lives on."""

import csv
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import metalearn
from metalearn import train
from metalearn.errors import UsageError
from metalearn.optim import sgd
from tests import pictures

main = importlib.import_module("metalearn.adapt").main
CLASSES = ("circle", "cross")


@pytest.fixture(autouse=True)
def in_a_folder_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With examples and images in it; their names are what a shell's user would have."""
    monkeypatch.chdir(tmp_path)
    pictures.write(tmp_path / "support", dict.fromkeys(CLASSES, range(3)))
    pictures.write(tmp_path / "my photos (1), new", dict.fromkeys(CLASSES, range(3, 5)))


def given(run: Path, *others: str) -> list[str]:
    names = {each.partition("=")[0] for each in others}
    defaults = [f"run={run}", "support=support", "query=my photos (1), new", "output=out", "device=cpu"]
    return [*(each for each in defaults if each.partition("=")[0] not in names), *others]


def test_it_labels_a_folder(glyph_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(each.relative_to(glyph_run) for each in glyph_run.rglob("*"))
    assert main(given(glyph_run, "num_inner_steps=5")) == 0
    told = capsys.readouterr()
    assert told.err == ""
    with Path("out/predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [f"{name}/{name} {number}.png" for name in CLASSES for number in (3, 4)]
    learner = metalearn.load(glyph_run, device="cpu", num_inner_steps=5)
    examples, images = (sorted(Path(folder).glob("*/*.png")) for folder in ("support", "my photos (1), new"))
    adapted = learner.adapt(examples, [each.parent.name for each in examples])
    assert [row["label"] for row in rows] == adapted.predict(images).tolist()
    shares = [[float(row["p_circle"]), float(row["p_cross"])] for row in rows]
    assert shares == pytest.approx(adapted.predict_proba(images), abs=1e-4)
    num_right = sum(row["label"] == row["true_label"] for row in rows)
    assert f"accuracy: {25 * num_right:.1f}% ({num_right} of 4" in told.out
    assert "depends on the images it is labelled with" in told.out
    with Image.open("out/predictions.png") as picture:
        assert min(picture.size) > 300
    assert sorted(each.relative_to(glyph_run) for each in glyph_run.rglob("*")) == before


def test_nothing_is_written_over(glyph_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("out").mkdir()
    Path("out/predictions.csv").write_text("mine")
    assert main(given(glyph_run)) == 2
    assert "output=out already holds predictions.csv" in capsys.readouterr().err
    assert Path("out/predictions.csv").read_text() == "mine"
    assert [each.name for each in Path("out").iterdir()] == ["predictions.csv"]


ODD_NAMES = [
    "1.10", "1e3", "2024_01", "true", "null", "${now:%Y}", "a${b}", "'tis", '"quoted', "a=b", "x,y", "[1]", "{a: 1}",
    "back\\", "it\\'s", "two\\\\", "\\${c}", " spaces ", "$1", "a:b", "~", "?", "'", '"', "ends'",
]  # fmt: skip


@pytest.mark.parametrize("name", ODD_NAMES)
@pytest.mark.parametrize("prefix", ["", "++"])
def test_a_path_is_a_path_whatever_it_looks_like(
    name: str, prefix: str, glyph_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    module = importlib.import_module("metalearn.adapt")
    monkeypatch.setattr(module, "_adapt", lambda composed: asked.append(composed.config.query))
    assert main([f"run={glyph_run}", "support=support", f"{prefix}query={name}"]) == 0
    assert asked == [name]


def test_what_is_quoted_already_is_taken_out_of_its_quotes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        importlib.import_module("metalearn.adapt"), "_adapt", lambda composed: asked.append(composed.config.query)
    )
    assert main(["query='my photos, 1'"]) == main(['query="my photos, 1"']) == 0
    assert asked == ["my photos, 1"] * 2


def test_a_class_whose_name_is_no_text_is_labelled(glyph_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = os.fsdecode(b"caf\xe9")
    Path("support/cross").rename(Path("support") / name)
    assert main(given(glyph_run, "query=support")) == 0
    assert "caf?" in capsys.readouterr().out
    assert Path("out/predictions.png").is_file()
    assert b"caf\xe9" in Path("out/predictions.csv").read_bytes()


def test_nothing_is_written_where_the_picture_fails(glyph_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise UsageError("no picture")

    monkeypatch.setattr(importlib.import_module("metalearn.adapt"), "draw_gallery", fail)
    assert main(given(glyph_run)) == 2
    assert not Path("out").exists()


def test_without_output_every_call_has_a_folder_of_its_own(glyph_run: Path) -> None:
    arguments = [each for each in given(glyph_run) if not each.startswith("output=")]
    assert main(arguments) == 0
    assert len(list(Path("outputs/adapt").glob("*/predictions.csv"))) == 1


MISTAKES = [
    (["run="], "give a folder"),
    (["support="], "support= is missing"),
    (["query="], "query= is missing"),
    (["run=nowhere"], "run=nowhere is not there"),
    (["run=support"], "has no config.yaml"),
    (["support=nowhere"], "support=nowhere is not there"),
    (["query=it's not here"], "query=it's not here is not there"),
    (["output=file"], "output=file is a file"),
    (["output=/dev/null/out"], "can not be written"),
    (["checkpoint=bset"], "Did you mean 'best'?"),
    (["on_bad_image=ignore"], "Known: 'error', 'skip'"),
    (["num_inner_steps=-1"], "num_inner_steps=-1"),
    (["num_inner_steps=many"], "expected a whole number, got 'many'"),
    (["inverted=maybe"], "expected true or false, got 'maybe'"),
    (["batch_size=0"], "batch_size=0"),
    (["device=gpu"], "Did you mean"),
    (["source=omniglot"], "source='omniglot': the task 'glyphs' has no sources"),
    (["quary=x"], "Did you mean 'query'?"),
    (["model=mlp"], "Known: 'batch_size', 'checkpoint', 'device'"),
    (["task.ways=5"], "there is no 'task'. Known: 'batch_size'"),
    (["support=file"], "file is a file and no zip"),
    (["-m", "num_inner_steps=1,2"], "leave -m out"),
]


@pytest.mark.parametrize(("overrides", "expected"), MISTAKES, ids=[" ".join(each) for each, _ in MISTAKES])
def test_a_mistake_is_told_in_a_line(
    overrides: list[str], expected: str, glyph_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").touch()
    assert main(given(glyph_run, *overrides)) == 2
    told = capsys.readouterr()
    assert expected in told.err
    assert "Traceback" not in told.err
    assert len(told.err.strip().splitlines()) == 1
    assert told.out == ""
    assert not Path("out").exists()


def test_what_is_wrong_with_the_images_is_told_too(
    glyph_run: Path, sinusoid_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(given(sinusoid_run)) == 2
    assert "the run is a regression (sinusoid)" in capsys.readouterr().err
    Path("support/cross/cross 1.png").write_bytes(b"no image")
    assert main(given(glyph_run)) == 2
    assert "cross 1.png is not a readable image" in capsys.readouterr().err
    assert not Path("out").exists()
    assert main(given(glyph_run, "on_bad_image=skip")) == 0
    assert "skipped in support: 1 files" in capsys.readouterr().out
    shutil.rmtree("support/cross")
    Path("support/cross").mkdir()
    assert main(given(glyph_run, "output=another")) == 2
    assert "the class 'cross' in support=support has no image" in capsys.readouterr().err


def test_as_a_process(glyph_run: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "metalearn.adapt", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)

    done = run(*given(glyph_run))
    assert (done.returncode, done.stderr) == (0, "")
    assert Path("out/predictions.png").is_file()
    refused = run(*given(glyph_run))
    assert refused.returncode == 2
    assert refused.stderr.startswith("metalearn: output=out already holds")
    assert "support=FOLDER" in run("--help").stdout


def test_the_function_of_the_same_name_stays_callable() -> None:
    module = importlib.import_module("metalearn.adapt")
    assert (
        metalearn.adapt is module
    )  # what an import of a submodule does to the package, and can not be kept from doing

    def square(params: dict[str, torch.Tensor], buffers: dict[str, torch.Tensor], target: torch.Tensor) -> torch.Tensor:
        return (params["w"] - target).square().sum()

    start, target = {"w": torch.zeros(1)}, torch.ones(1)
    for adapt in (metalearn.adapt, module, metalearn.inner.adapt):
        adapted = adapt(square, start, {}, target, optimizer=sgd(0.25), num_inner_steps=2)
        assert adapted.params["w"].item() == 0.75
    with pytest.raises(UsageError, match="num_inner_steps"):
        metalearn.adapt(square, start, {}, target, optimizer=sgd(0.25), num_inner_steps=-1)


def test_the_function_is_what_the_package_shows_before_the_module_is_imported() -> None:
    before, after = "assert metalearn.adapt is metalearn.inner.adapt", "import metalearn.adapt; metalearn.adapt.main"
    code = f"import metalearn; {before}; {after}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_from_a_folder_of_pictures_to_labels_for_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures.write(tmp_path / "known", dict.fromkeys(pictures.SHAPES, range(4)))
    task = ("task=image_folder", f"task.root={tmp_path / 'known'}", "task.image_size=16", "task.ways=2")
    splits = "task.splits={train: [line, square, wave], test: [zigzag, cross]}"
    sizes = ("task.shots=1", "task.query_shots=2", "meta.num_steps=1", "eval.num_episodes=2", "eval.val_episodes=0")
    quiet = (
        "model.filters=4",
        "eval.baseline=false",
        "device=cpu",
        "logger=none",
        "hydra.run.dir=run",
        "task.cache_dir=cache",
    )
    assert train.main([*task, splits, *sizes, *quiet]) == 0
    shutil.rmtree(tmp_path / "known")
    learner = metalearn.load("run", device="cpu")
    assert learner.task.input_shape == (3, 16, 16)
    capsys.readouterr()
    assert main(given(Path("run"))) == 0
    examples, images = (sorted(Path(folder).glob("*/*.png")) for folder in ("support", "my photos (1), new"))
    expected = learner.adapt(examples, [each.parent.name for each in examples]).predict(images)
    with Path("out/predictions.csv").open(encoding="utf-8", newline="") as file:
        assert [row["label"] for row in csv.DictReader(file)] == expected.tolist()
    assert Path("out/predictions.png").is_file()
