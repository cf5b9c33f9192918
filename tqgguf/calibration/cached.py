"""Calibrated quantization: a text, the model that is to be written, and a cache of what came out.

Two things are kept in the user's cache under the hash of everything they depend on. What feedback
rounding made of each matrix, so that an interrupted calibration goes on where it stopped and a
repeated one is read from disk; and what the original network computes on the text, which another
type of the same model needs as well.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqgguf.calibration.calibrate import Settings, calibrate
from tqgguf.calibration.kept import Kept, open_kept
from tqgguf.errors import FileFormatError, PlanError
from tqgguf.kernels.dtypes import U8
from tqgguf.llamacpp.tokenizer import tokenize
from tqgguf.machine.cache import user_cache
from tqgguf.models import Model, model_files
from tqgguf.network.forward import Tokens
from tqgguf.network.graph import read_graph
from tqgguf.rotation.folded import fold
from tqgguf.rotation.rotation import Rotation

LONGEST_CONTEXT = 512
DEFAULT_TOKENS = 1 << 16
_VERSION = 3  # of what is cached; raised when the same inputs give other bytes
_STATISTICS_BYTES = 4 << 30  # of what one model computes on one text
_HASHED_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class Calibrated:
    """Rows of the matrices that feedback rounded, (n_rows, n_bytes) uint8, and what made them."""

    rows: Mapping[str, U8] = field(repr=False)
    key: str


def calibrate_model(
    model: Model,
    rotation: Rotation,
    types: Mapping[str, str],
    tokens: Tokens,
    *,
    settings: Settings | None = None,
    advance: Callable[[int], object] = lambda _: None,
) -> Calibrated:
    """Round every matrix with error feedback on these tokens.

    rotation: what is folded in first. types: what each tensor of the output becomes.
    tokens: (n_seq, n_tokens) int32. advance is called with the weights of each finished matrix.
    Raises UnsupportedModelError where the architecture has no forward pass.
    """
    read_graph(model)
    settings = settings or Settings()
    rotation = rotation.with_vectors_of(model)
    statistics = kept_statistics(model, rotation, tokens)
    key = _results_key(model, rotation, types, tokens, settings)
    results = open_kept(_folder(), key)
    known = {name: found[0] for name in types if (found := results.read(name))}
    folded = fold(model, rotation)
    rows = {}
    for name, data in calibrate(folded, types, tokens, settings, known=known, kept=statistics):
        rows[name] = known[name] if name in known else _kept_rows(results, name, data)
        advance(folded.tensors[name].size)
    return Calibrated(rows, key)


def _kept_rows(results: Kept, name: str, data: U8) -> U8:
    """The same rows, mapped from the disk if that took them: not all of a model fit in memory."""
    results.write(name, [data])
    found = results.read(name)
    return found[0] if found else data


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


def kept_statistics(model: Model, rotation: Rotation, tokens: Tokens) -> Kept:
    """Where what the rotated model computes on these tokens is kept, whatever it is quantized to.

    rotation: with its vectors.
    """
    return open_kept(_folder(), _statistics_key(model, rotation, tokens), room=_STATISTICS_BYTES)


def _folder() -> Path:
    return user_cache() / "calibration"


def _statistics_key(model: Model, rotation: Rotation, tokens: Tokens) -> str:
    files = [(p, p.stat().st_size, p.stat().st_mtime_ns) for p in model_files(model.path)]
    said = (_VERSION, np.__version__, _content(tuple(files)), rotation, tokens.shape)
    return _hash(said, tokens, *rotation.vectors.values())


def _results_key(
    model: Model,
    rotation: Rotation,
    types: Mapping[str, str],
    tokens: Tokens,
    settings: Settings,
) -> str:
    choices = list(types.items())
    settled = (settings.sweeps, settings.damping, settings.drift, settings.ridge)
    return _hash((_statistics_key(model, rotation, tokens), choices, settled))


@lru_cache(maxsize=1)
def _content(files: tuple[tuple[Path, int, int], ...]) -> str:
    """A hash of what is in the files; size and time tell when they have to be read again."""
    digest = hashlib.blake2b(digest_size=16)
    for path, _, _ in files:
        with path.open("rb") as file:
            while part := file.read(_HASHED_AT_ONCE):
                digest.update(part)
    return digest.hexdigest()


def _hash(said: object, *arrays: NDArray[Any]) -> str:
    """A hash of a text and of arrays, in hexadecimal."""
    digest = hashlib.blake2b(repr(said).encode(), digest_size=16)
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


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


def _beginning(model: Model, ids: "np.ndarray[tuple[int, ...], np.dtype[np.int32]]") -> list[int]:
    """The token that llama.cpp put first, if it is the beginning of a text."""
    bos = model.get("tokenizer.ggml.bos_token_id")
    return [int(ids[0])] if len(ids) and bos is not None and int(ids[0]) == bos else []
