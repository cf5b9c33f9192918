"""Where the user's cache is."""

import os
from pathlib import Path


def user_cache() -> Path:
    """The user's cache directory for tqgguf: $XDG_CACHE_HOME or ~/.cache, then tqgguf."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tqgguf"
