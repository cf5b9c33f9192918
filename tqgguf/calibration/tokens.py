"""A text as tokens: sequences that each begin as the model expects a text to begin."""

from pathlib import Path

import numpy as np

from tqgguf.errors import FileFormatError, PlanError
from tqgguf.kernels.dtypes import I32
from tqgguf.llamacpp.tokenizer import tokenize
from tqgguf.models import Model
from tqgguf.network.forward import Tokens
from tqgguf.network.graph import read_graph

LONGEST_CONTEXT = 512
DEFAULT_TOKENS = 1 << 16


def read_tokens(model: Model, text: Path, *, limit: int | None = None) -> tuple[Tokens, str]:
    """Tokenize a text into sequences that each begin as the model expects a text to begin.

    limit: tokens to use (None: DEFAULT_TOKENS). -> (n_seq, n_tokens) int32, and what tokenized it.
    Raises ToolError where no llama.cpp is at hand for that, FileFormatError for a file that is no
    text, PlanError where it is too short or holds tokens beyond the model's table.
    """
    _check_text(text)
    context = min(read_graph(model).n_ctx, LONGEST_CONTEXT)
    found, tokenizer = tokenize(model.metadata, text)
    ids = np.array(found, np.int32)
    first = _beginning(model, ids)
    body = ids[len(first) :]
    size = context - len(first)
    if len(body) < size:
        raise PlanError(
            f"{text}: {len(body):,} tokens, and calibration needs at least {size:,}; "
            "20,000 or more do well"
        )
    count = max(1, min(len(body), limit or DEFAULT_TOKENS) // size)
    sequences = body[: count * size].reshape(count, size)
    start = np.broadcast_to(first, (count, len(first)))
    tokens: Tokens = np.concatenate([start, sequences], axis=1).astype(np.int32)
    n_vocab = model.tensors["token_embd.weight"].n_rows
    if int(tokens.max()) >= n_vocab:
        raise PlanError(
            f"{text}: token {int(tokens.max())} is beyond the model's table of {n_vocab}; the "
            "tokenizer belongs to another model"
        )
    return tokens, tokenizer


def _check_text(text: Path) -> None:
    try:
        data = text.read_bytes()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise FileFormatError(f"{text}: {reason}") from error
    try:
        data.decode()
    except UnicodeDecodeError as error:
        raise FileFormatError(
            f"{text}: byte {error.start:,} is not UTF-8; calibration needs a plain text file"
        ) from None
    if b"\0" in data:
        raise FileFormatError(f"{text}: a binary file; calibration needs a plain text file")


def _beginning(model: Model, ids: I32) -> list[int]:
    """The token that llama.cpp put first, if it is the beginning of a text."""
    bos = model.get("tokenizer.ggml.bos_token_id")
    return [int(ids[0])] if len(ids) and bos is not None and int(ids[0]) == bos else []
