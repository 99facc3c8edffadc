"""The tests that need the real learn2learn, which pip can not install: without it they are left out, loudly."""

import importlib.util

import pytest

_LEFT_OUT = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "learn2learn: needs the package, built by scripts/install_learn2learn.sh")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    needing = [item for item in items if item.get_closest_marker("learn2learn")]
    if needing and importlib.util.find_spec("learn2learn") is None:
        config.stash[_LEFT_OUT] = len(needing)
        config.hook.pytest_deselected(items=needing)
        items[:] = [item for item in items if item not in needing]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if number := config.stash.get(_LEFT_OUT, 0):
        text = f"LEFT OUT: {number} tests that need learn2learn, which is not installed (pip can not build it)."
        fix = "Run `bash scripts/install_learn2learn.sh`, then `pytest -m learn2learn`."
        terminalreporter.write_line(f"{text} {fix}", yellow=True, bold=True)
