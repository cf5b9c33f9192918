"""The model that a command is given: on the hub, a folder, or a file; and how a folder is read."""

from dataclasses import dataclass
from pathlib import Path

import typer

from tqgguf.cli import options as o
from tqgguf.cli.console import warn
from tqgguf.llamacpp.converter import Conversion, open_any
from tqgguf.models import Model, open_model
from tqgguf.models.download import download, hub_name


@dataclass(frozen=True)
class Folder:
    """How a Hugging Face folder is read."""

    vocab_from: o.VocabFrom = None
    converter: o.Converter = None
    converter_python: o.ConverterPython = None

    def open(self, path: Path, output: Path, *, resume: bool, force: bool, quiet: bool) -> Model:
        """A model, through llama.cpp's converter where it must be: see `open_any`."""
        through = Conversion(output, self.converter, self.converter_python, resume, force)
        model = open_any(path, through, vocab_from=self.vocab_from)
        return _with_notes_said(model, quiet=quiet)


def open_source(path: Path, vocab_from: Path | None = None, *, quiet: bool = False) -> Model:
    """A model that is read natively; what reading it left out or took from elsewhere is said."""
    return _with_notes_said(open_model(path, vocab_from=vocab_from), quiet=quiet)


def _with_notes_said(model: Model, *, quiet: bool) -> Model:
    for line in () if quiet else model.notes:
        warn(f"note: {line}")
    return model


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
