"""Embedding models and rerankers: how a text's vectors become one, and the head that ranks."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import Keys, PoolingType

from tqgguf.errors import FileFormatError, UnsupportedModelError
from tqgguf.kernels.dtypes import F32
from tqgguf.models.hub import display_name
from tqgguf.models.huggingface.folder import Config, read_json, read_text
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
    """The settings of the module that pools, from modules.json."""
    path = folder / _MODULES
    if not path.is_file():
        return None
    try:
        modules = json.loads(read_text(path))
    except ValueError as error:
        raise FileFormatError(f"{path}: not JSON: {error}") from None
    for module in modules if isinstance(modules, list) else []:
        match module:
            case {"type": str(kind), "path": str(name)} if kind.endswith("Pooling"):
                if Path(name).name != name:
                    raise FileFormatError(f"{path}: {name[:60]!r}, expected a folder's name")
                return folder / name / "config.json"
    return None


def is_reranker(folder: Path, config: Config) -> bool:
    """Whether a Qwen3 model answers yes or no: only its name and card tell."""
    card = folder / "README.md"
    texts = [display_name(folder), str(config.get("_name_or_path") or "")]
    texts += [read_text(card)] if card.is_file() else []
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
