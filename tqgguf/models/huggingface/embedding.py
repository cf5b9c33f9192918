"""Embedding models and rerankers: how a text's vectors become one, and the head that ranks."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from gguf import Keys, PoolingType

from tqgguf.errors import FileFormatError, UnsupportedModelError
from tqgguf.kernels.dtypes import F32
from tqgguf.models.hub import display_name
from tqgguf.models.huggingface.architecture import Architecture
from tqgguf.models.huggingface.folder import Config, read_json, read_utf8
from tqgguf.models.huggingface.safetensors import read_weights
from tqgguf.models.metadata import Value, encode
from tqgguf.models.model import Tensor

_MODULES = "modules.json"
# sentence-transformers' names, newer and older, of what llama.cpp can do.
_POOLING: Mapping[str, PoolingType] = {
    "mean": PoolingType.MEAN,
    "cls": PoolingType.CLS,
    "lasttoken": PoolingType.LAST,
    "pooling_mode_mean_tokens": PoolingType.MEAN,
    "pooling_mode_cls_token": PoolingType.CLS,
    "pooling_mode_lasttoken": PoolingType.LAST,
}
_DENSE = ("dense_2", "dense_3")  # after the folders of EmbeddingGemma
_RANKING = ("yes", "no")  # Qwen3-Reranker's answers, whose odds are the score
_RANK_TEMPLATE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and "
    'the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n<Instruct>: Given a web search query, retrieve relevant passages that "
    "answer the query\n<Query>: {query}\n<Document>: {document}<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n"
)  # the prompt the model was trained with, as other converters write it
HEAD, EMBEDDING, RANK_HEAD = "output.weight", "token_embd.weight", "cls.output.weight"


def pooling_keys(folder: Path, architecture: str) -> dict[str, Value]:
    """`pooling_type` of an embedding model made with sentence-transformers; nothing for others.

    Raises FileFormatError for broken files, UnsupportedModelError for a pooling that llama.cpp
    does not have.
    """
    path = _pooling_file(folder)
    if path is None:
        return {}
    settings = read_json(path)
    names = [k for k, v in settings.items() if k.startswith("pooling_mode_") and v is True]
    names = names or [str(settings.get("pooling_mode"))]
    if len(names) != 1 or names[0] not in _POOLING:
        raise UnsupportedModelError(
            f"{path}: pools by {', '.join(names)[:80]}, which llama.cpp does not; expected mean, "
            "cls or lasttoken"
        )
    mode = int(_POOLING[names[0]])
    return {Keys.LLM.POOLING_TYPE.format(arch=architecture): encode(mode)}


def _pooling_file(folder: Path) -> Path | None:
    """The settings of the module that pools."""
    return next((at / "config.json" for kind, at in _modules(folder) if kind == "Pooling"), None)


def _modules(folder: Path) -> Iterator[tuple[str, Path]]:
    """The kinds and folders of sentence-transformers' modules, in order; none elsewhere."""
    path = folder / _MODULES
    if not path.is_file():
        return
    try:
        modules = json.loads(read_utf8(path))
    except ValueError as error:
        raise FileFormatError(f"{path}: not JSON: {error}") from None
    for module in modules if isinstance(modules, list) else []:
        match module:
            case {"type": str(kind), "path": str(name)}:
                if Path(name).name != name:
                    raise FileFormatError(f"{path}: {name[:60]!r}, expected a folder's name")
                yield kind.rpartition(".")[2], folder / name


def dense_behind(
    folder: Path, config: Config, architecture: Architecture, note: Callable[[str], None]
) -> tuple[dict[str, Value], dict[str, Tensor]]:
    """The matrices behind the pooling (EmbeddingGemma has two): their keys and tensors.

    note is told of those that the graph does not read. Raises FileFormatError for broken files,
    UnsupportedModelError for a layer that is more than a matrix.
    """
    places = [at for kind, at in _modules(folder) if kind == "Dense"]
    if places and not architecture.dense:
        names = ", ".join(at.name for at in places)
        note(f"{folder}: left out what follows the pooling ({names}), which no graph reads")
        return {}, {}
    matrices = [_matrix(at) for at in places]
    widths = [config.n_embd, *(matrix.shape[0] for matrix in matrices)]
    fits = [matrix.n_in for matrix in matrices] == widths[:-1] and widths[-1] == config.n_embd
    if len(matrices) > len(_DENSE) or not fits:
        raise UnsupportedModelError(
            f"{folder}: {len(matrices)} matrices behind the pooling, from {config.n_embd} to "
            f"{' to '.join(map(str, widths[1:]))}; llama.cpp has room for two, back to that width"
        )
    named = dict(zip(_DENSE, matrices, strict=False))
    keys = {}
    for name, matrix in named.items():
        for end, width in (("in", matrix.n_in), ("out", matrix.shape[0])):
            keys[f"{architecture.name}.{name}_feat_{end}"] = encode(width)
    return keys, {f"{n}.weight": replace(m, name=f"{n}.weight") for n, m in named.items()}


def _matrix(folder: Path) -> Tensor:
    """The weights of one Dense module, which may have no bias and no activation."""
    settings = read_json(folder / "config.json")
    activation = str(settings.get("activation_function", "Identity")).rpartition(".")[2]
    weights = read_weights(folder)
    if settings.get("bias") or activation != "Identity" or list(weights) != ["linear.weight"]:
        raise UnsupportedModelError(
            f"{folder}: bias {settings.get('bias')}, activation {activation[:40]}; llama.cpp "
            "multiplies by a matrix alone"
        )
    matrix = weights["linear.weight"].tensor()
    if len(matrix.shape) != 2:
        raise FileFormatError(f"{folder}: linear.weight has shape {matrix.shape}, not a matrix's")
    return matrix


def is_reranker(folder: Path, config: Config) -> bool:
    """Whether a Qwen3 model answers yes or no: only its name and card tell."""
    card = folder / "README.md"
    texts = [display_name(folder), str(config.get("_name_or_path") or "")]
    texts += [read_utf8(card)] if card.is_file() else []
    return any("qwen3-reranker" in text.lower() for text in texts)


def ranking(
    architecture: str, tokenizer: Mapping[str, Value], tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Value], dict[str, Tensor]]:
    """A language model's head cut down to the rows of "yes" and "no": the keys and the tensors.

    Raises FileFormatError if the vocabulary lacks these tokens.
    """
    tokens: list[Any] = tokenizer[Keys.Tokenizer.LIST].decode()
    absent = [word for word in _RANKING if word not in tokens]
    if absent:
        raise FileFormatError(f"a reranker without the token {absent[0]!r} in its vocabulary")
    head = tensors[HEAD if HEAD in tensors else EMBEDDING]
    rows = [tokens.index(word) for word in _RANKING]
    kept = {name: tensor for name, tensor in tensors.items() if name != HEAD}
    keys = {
        Keys.LLM.POOLING_TYPE.format(arch=architecture): encode(int(PoolingType.RANK)),
        Keys.Classifier.OUTPUT_LABELS.format(arch=architecture): encode(list(_RANKING)),
        Keys.Tokenizer.CHAT_TEMPLATE_N.format(name="rerank"): encode(_RANK_TEMPLATE),
        Keys.Tokenizer.CHAT_TEMPLATES: encode(["rerank"]),
    }
    return keys, {**kept, RANK_HEAD: _chosen(head, rows)}


def _chosen(head: Tensor, rows: list[int]) -> Tensor:
    """Some rows of a matrix as a matrix of float32."""

    def read(start: int, stop: int) -> F32:
        parts = [head.rows(row, row + 1) for row in rows[start:stop]]
        return np.concatenate(parts) if parts else head.rows(0, 0)

    return Tensor(RANK_HEAD, (len(rows), head.n_in), "F32", read)
