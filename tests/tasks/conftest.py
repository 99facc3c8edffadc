"""One decoded Omniglot for all the tests of it."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for the session, so that Omniglot is decoded once."""
    return tmp_path_factory.mktemp("cache")
