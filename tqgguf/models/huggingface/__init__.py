"""Hugging Face folders and .safetensors files as models: names, layout and metadata of GGUF."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tqgguf.errors import FileFormatError
from tqgguf.models.huggingface.architecture import Architecture, check_assumptions
from tqgguf.models.huggingface.architectures import find_architecture
from tqgguf.models.huggingface.embedding import dense_behind, is_reranker, pooling_keys, ranking
from tqgguf.models.huggingface.folder import Config
from tqgguf.models.huggingface.general import general_keys
from tqgguf.models.huggingface.hyperparameters import convert_hyperparameters
from tqgguf.models.huggingface.quantized import decoded
from tqgguf.models.huggingface.rope import rope_tensors
from tqgguf.models.huggingface.safetensors import read_weights
from tqgguf.models.huggingface.sources import check_source
from tqgguf.models.huggingface.tensors import convert_tensors
from tqgguf.models.huggingface.tokenizer import tokenizer_keys
from tqgguf.models.metadata import Value
from tqgguf.models.model import Model, Tensor

__all__ = ["huggingface_tensors", "read_huggingface"]


def read_huggingface(path: Path, *, vocabulary: Model | None = None) -> Model:
    """Open a Hugging Face folder, or one .safetensors file beside its config.json.

    Tensors come under their GGUF names, in ggml's order of rows, experts stacked; all of it done
    when rows are read. vocabulary: a model whose tokenizer to use in place of the folder's.
    Raises FileFormatError or UnsupportedModelError.
    """
    folder, config, architecture = _described(path)
    remark = architecture.remark(config) if architecture.remark else None
    notes = [f"{folder}: {remark}"] if remark else []
    hyperparameters = convert_hyperparameters(config, architecture)
    weights = _weights(path, config, architecture, notes.append)
    if vocabulary is None:
        tokenizer = tokenizer_keys(folder, config, architecture, notes.append)
    else:
        tokenizer = _borrowed(vocabulary, config)
    dense_keys, dense = dense_behind(folder, config, architecture, notes.append)
    tensors = {**rope_tensors(config, architecture), **weights, **dense}
    pooling = {**pooling_keys(folder, architecture.name), **dense_keys}
    keys = {**hyperparameters, **pooling, **tokenizer}
    if architecture.ranks and is_reranker(folder, config):
        more, tensors = ranking(architecture.name, tokenizer, tensors)
        keys |= more
    general = general_keys(folder, architecture.name, tensors)
    return Model(path, {**general, **keys}, tensors, tuple(notes))


def huggingface_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of `read_huggingface` alone: no tokenizer is needed, but by a reranker."""
    folder, config, architecture = _described(path)
    if architecture.ranks and is_reranker(folder, config):
        return dict(read_huggingface(path).tensors)
    weights = _weights(path, config, architecture, lambda _: None)
    _, dense = dense_behind(folder, config, architecture, lambda _: None)
    return {**rope_tensors(config, architecture), **weights, **dense}


def _weights(
    path: Path, config: Config, architecture: Architecture, note: Callable[[str], None]
) -> dict[str, Tensor]:
    stored = decoded(read_weights(path), config, note)
    return convert_tensors(stored, config, architecture, note)


def _described(path: Path) -> tuple[Path, Config, Architecture]:
    """The folder, its config.json with the architecture's defaults, and the architecture."""
    folder = path if path.is_dir() else path.parent
    check_source(path)
    config = Config.read(folder / "config.json")
    architecture = find_architecture(config)
    config = replace(config, values={**architecture.defaults, **config.values})
    check_assumptions(config, architecture)
    return folder, config, architecture


def _borrowed(vocabulary: Model, config: Config) -> dict[str, Value]:
    """The tokenizer keys of another model, which must have a token for every embedding row."""
    keys = {k: v for k, v in vocabulary.metadata.items() if k.startswith("tokenizer.")}
    tokens = keys.get("tokenizer.ggml.tokens")
    count = len(tokens.decode()) if tokens else 0
    if count != config.count("vocab_size"):
        raise FileFormatError(
            f"{vocabulary.path}: has {count} tokens, but {config.path} says vocab_size "
            f"{config.count('vocab_size')}"
        )
    return keys
