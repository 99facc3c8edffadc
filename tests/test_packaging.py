"""sdist -> wheel -> a new environment -> a run from another folder."""

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
TINY = (
    "task=sinusoid",
    "meta.num_steps=2",
    "eval.num_episodes=4",
    "eval.val_episodes=0",
    "device=cpu",
    "hydra.run.dir=run",
)

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTHONWARNINGS"}}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        text=True,
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The sdist, and the wheel built from it: `build` takes this way, not the tree's."""
    folder = tmp_path_factory.mktemp("dist")
    # Without isolation: the build backend is in the test extra, so that this needs no network.
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, REPOSITORY, cwd=folder)
    return {"sdist": next(folder.glob("*.tar.gz")), "wheel": next(folder.glob("*.whl"))}


@pytest.fixture(scope="module")
def installed(artefacts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of a new environment with the wheel in it.

    The dependencies come from the environment of the tests by a `.pth` line after the wheel's own folder: to download
    torch again would test nothing of ours.
    """
    folder = tmp_path_factory.mktemp("venv")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    site = Path(
        run(
            folder / "bin" / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder
        ).strip()
    )
    pip = (sys.executable, "-m", "pip", "--python", folder / "bin" / "python")
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", artefacts["wheel"], cwd=folder)
    # .pth files inside a path that a .pth file adds are not read: an editable install over there stays out of the way.
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    return folder / "bin"


def test_the_wheel_holds_the_package_its_data_and_the_configs(artefacts: dict[str, Path]) -> None:
    names = set(zipfile.ZipFile(artefacts["wheel"]).namelist())
    configs = {f"metalearn/{path.relative_to(REPOSITORY)}" for path in (REPOSITORY / "configs").rglob("*.yaml")}
    package = {
        str(path.relative_to(REPOSITORY))
        for path in (REPOSITORY / "metalearn").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert configs <= names
    assert package <= names
    assert not {name for name in names if name.startswith(("tests", "configs"))}


def test_the_sdist_holds_what_a_build_needs(artefacts: dict[str, Path]) -> None:
    with tarfile.open(artefacts["sdist"]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "LICENSE", "README.md", "configs/train.yaml", "metalearn/py.typed"} <= names


def test_a_run_from_another_folder(installed: Path, tmp_path: Path) -> None:
    where = run(installed / "python", "-c", "import metalearn; print(metalearn.__file__)", cwd=tmp_path)
    assert str(installed.parent) in where
    run(installed / "python", "-m", "metalearn.train", *TINY, cwd=tmp_path)
    assert json.loads((tmp_path / "run" / "results.json").read_text())["test"]["loss"]["num_episodes"] == 4
    run(installed / "python", "-m", "metalearn.evaluate", "run=run", cwd=tmp_path)


@pytest.mark.parametrize("script", ["metalearn-train", "metalearn-evaluate", "metalearn-compare", "metalearn-adapt"])
def test_help_of_the_installed_scripts(script: str, installed: Path, tmp_path: Path) -> None:
    assert "python -m metalearn." in run(installed / script, "--help", cwd=tmp_path)
