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


def repository_folder(path: Path) -> Path | None:
    """The cached repository that a path is or lies in; None elsewhere."""
    places = (path.absolute(), *path.absolute().parents)
    return next((place for place in places if place.name.startswith(_PREFIX)), None)


def repositories(folder: Path) -> list[Path]:
    """The cached repositories of models in a folder."""
    return sorted(p for p in folder.glob(f"{_PREFIX}*") if p.is_dir())


def snapshot(repository: Path) -> Path | None:
    """The snapshot that refs/main names, else the newest; None if none has a config.json."""
    main = repository / "refs" / "main"
    named = main.read_bytes()[:80].decode("ascii", "replace").strip() if main.is_file() else ""
    found = [p for p in (repository / "snapshots").glob("*/config.json") if p.is_file()]
    best = max(found, key=lambda p: (p.parent.name == named, p.stat().st_mtime), default=None)
    return best.parent if best else None


def display_name(path: Path) -> str:
    """What a folder or file is called: the repository's name in the hub's cache."""
    repository = cached_repository(path)
    if repository:
        return repository.name
    return path.name if path.name not in ("", "..") else path.resolve().name
