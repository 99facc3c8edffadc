"""Where decoded data sets are kept."""

import sys
from pathlib import Path

import pytest

from metalearn.tasks.cache import cache_folder


def test_the_choice_wins_over_the_variable_and_that_over_the_platform(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path / "variable"))
    assert cache_folder(tmp_path / "choice") == tmp_path / "choice"
    assert cache_folder("~/choice") == Path.home() / "choice"
    assert cache_folder() == tmp_path / "variable"


@pytest.mark.parametrize(
    ("platform", "variable", "expected"),
    [
        ("linux", "XDG_CACHE_HOME", "variable/metalearn"),
        ("linux", None, "home/.cache/metalearn"),
        ("darwin", None, "home/Library/Caches/metalearn"),
        ("win32", "LOCALAPPDATA", "variable/metalearn"),
        ("win32", None, "home/AppData/Local/metalearn"),
    ],
)
def test_the_platforms_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, platform: str, variable: str | None, expected: str
) -> None:
    for name in ("METALEARN_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    if variable is not None:
        monkeypatch.setenv(variable, str(tmp_path / "variable"))
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    monkeypatch.setattr(sys, "platform", platform)
    assert cache_folder() == tmp_path / expected
