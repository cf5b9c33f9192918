"""What a model is on disk.

The reader of Hugging Face folders is imported where one is opened: it takes long to load.
"""

from collections.abc import Mapping
from pathlib import Path

from tqgguf.errors import FileFormatError, PlanError
from tqgguf.models.gguf import read_gguf, shard_files
from tqgguf.models.model import INTEGERS, Model, Tensor, scale_name, stored_bytes

__all__ = [
    "INTEGERS",
    "Model",
    "Tensor",
    "input_files",
    "model_files",
    "open_model",
    "open_tensors",
    "scale_name",
    "stored_bytes",
]


def open_model(path: Path, *, vocab_from: Path | None = None) -> Model:
    """Open a .gguf file (or the first of its shards), a Hugging Face folder or .safetensors.

    vocab_from: a GGUF file whose tokenizer takes the place of a folder's own.
    """
    if not path.exists():
        raise FileFormatError(f"{path}: no such file or folder")
    if _is_huggingface(path):
        from tqgguf.models.huggingface import read_huggingface

        return read_huggingface(path, vocabulary=read_gguf(vocab_from) if vocab_from else None)
    if vocab_from:
        raise PlanError(f"{path}: a GGUF file has its own vocabulary; leave out --vocab-from")
    return read_gguf(path)


def open_tensors(path: Path) -> Mapping[str, Tensor]:
    """The tensors of `open_model`, whatever its vocabulary was taken from."""
    if _is_huggingface(path):
        from tqgguf.models.huggingface import huggingface_tensors

        return huggingface_tensors(path)
    return read_gguf(path).tensors


def model_files(path: Path) -> list[Path]:
    """The files that `open_model` reads weights and settings from, in a fixed order."""
    if _is_huggingface(path):
        folder = path if path.is_dir() else path.parent
        weights = sorted(folder.glob("*.safetensors")) if path.is_dir() else [path]
        settings = (folder.glob(pattern) for pattern in ("*.json", "*.model"))
        return [*weights, *sorted(p for files in settings for p in files)]
    return shard_files(path)


def input_files(path: Path) -> list[Path]:
    """Every file that belongs to a model, and so must not be written; any other path itself."""
    if not path.exists():
        return []
    if path.is_dir():
        known = (path.glob(f"*{ending}") for ending in (".txt", ".jinja", ".tiktoken", ".bin"))
        return [*model_files(path), *(file for files in known for file in files)]
    return model_files(path) if path.suffix in (".gguf", ".safetensors") else [path]


def _is_huggingface(path: Path) -> bool:
    return path.is_dir() or path.suffix == ".safetensors"
