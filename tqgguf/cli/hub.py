"""Models that are named as on the hub: fetched, unless a local path has that name."""

from pathlib import Path

import typer

from tqgguf.cli.console import warn
from tqgguf.models.download import download, hub_name


def local_model(path: Path, *, quiet: bool = False) -> Path:
    """Where a model is on this machine: the path itself, or the hub's cache after fetching it."""
    name = hub_name(str(path))
    if name is None:
        if str(path).startswith("hf:"):
            asked = str(path).replace("hf:/", "hf://", 1)
            raise typer.BadParameter(f"{asked} is neither hf://ORG/NAME nor one @REVISION of it")
        return path
    if path.exists():
        if not quiet:
            warn(f"note: {path}: the local path is meant; hf://{path} would be the hub's")
        return path
    return download(name, quiet=quiet)
