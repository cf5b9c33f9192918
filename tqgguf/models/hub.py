"""Hugging Face's cache of repositories: models--ORG--NAME/snapshots/COMMIT/FILE, linked to blobs/.

The names there are commits and hashes, and what lies there belongs to the cache: outputs are named
after the repository and go elsewhere.
"""

from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

_PREFIX = "models--"


class Repository(NamedTuple):
    """A repository of the hub."""

    organization: str  # empty for the oldest models
    name: str


def cached_repository(path: Path) -> Repository | None:
    """The repository whose snapshot (or blob) a path is, by its own words; None elsewhere."""
    for inside, folder in pairwise(path.absolute().parts):
        if inside.startswith(_PREFIX) and folder in ("snapshots", "blobs"):
            organization, dashes, name = inside.removeprefix(_PREFIX).partition("--")
            return Repository(organization, name) if dashes else Repository("", organization)
    return None


def display_name(path: Path) -> str:
    """What a folder or file is called: the repository's name in the hub's cache."""
    repository = cached_repository(path)
    if repository:
        return repository.name
    return path.name if path.name not in ("", "..") else path.resolve().name
