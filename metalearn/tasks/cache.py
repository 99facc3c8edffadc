"""Where decoded data sets and downloads are kept."""

import os
import sys
from pathlib import Path


def cache_folder(cache_dir: str | Path | None = None) -> Path:
    """The package's cache: `cache_dir`, else `$METALEARN_CACHE`, else a folder in the platform's place for caches."""
    chosen = cache_dir or os.environ.get("METALEARN_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "metalearn"
