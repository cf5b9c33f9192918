"""What a model is on disk."""

from pathlib import Path

from tqgguf.errors import FileFormatError, PlanError
from tqgguf.models.gguf import read_gguf, shard_files
from tqgguf.models.huggingface import read_huggingface
from tqgguf.models.model import Model, Tensor

__all__ = ["Model", "Tensor", "model_files", "open_model"]


def open_model(path: Path, *, vocab_from: Path | None = None) -> Model:
    """Open a .gguf file (or the first of its shards), a Hugging Face folder or .safetensors.

    vocab_from: a GGUF file whose tokenizer takes the place of a folder's own.
    """
    if not path.exists():
        raise FileFormatError(f"{path}: no such file or folder")
    if path.is_dir() or path.suffix == ".safetensors":
        return read_huggingface(path, vocabulary=read_gguf(vocab_from) if vocab_from else None)
    if vocab_from:
        raise PlanError(f"{path}: a GGUF file has its own vocabulary; leave out --vocab-from")
    return read_gguf(path)


def model_files(path: Path) -> list[Path]:
    """The files that `open_model` reads weights and settings from, in a fixed order."""
    if path.is_dir() or path.suffix == ".safetensors":
        folder = path if path.is_dir() else path.parent
        weights = sorted(folder.glob("*.safetensors")) if path.is_dir() else [path]
        settings = (folder.glob(pattern) for pattern in ("*.json", "*.model"))
        return [*weights, *sorted(p for files in settings for p in files)]
    return shard_files(path)
