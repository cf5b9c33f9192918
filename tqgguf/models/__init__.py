"""What a model is on disk."""

from pathlib import Path

from tqgguf.errors import FileFormatError
from tqgguf.models.gguf import read_gguf
from tqgguf.models.model import Model, Tensor

__all__ = ["Model", "Tensor", "open_model"]


def open_model(path: Path) -> Model:
    """Open a .gguf file (the first shard of a split one too)."""
    if not path.exists():
        raise FileFormatError(f"{path}: no such file or folder")
    return read_gguf(path)
