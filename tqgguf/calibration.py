"""Calibrated quantization: a text, the model that is to be written, and a cache of what came out.

What feedback rounding made of each matrix is kept in the user's cache under the hash of everything
it depends on, so that an interrupted calibration goes on where it stopped and a repeated one is
read from disk.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from tqgguf.errors import FileFormatError, PlanError
from tqgguf.kernels.dtypes import U8
from tqgguf.llamacpp import programs
from tqgguf.llamacpp.tools import user_cache
from tqgguf.models import Model, model_files
from tqgguf.models.layout import lay_out
from tqgguf.plan import Plan
from tqgguf.runtime.calibrate import Settings, calibrate
from tqgguf.runtime.folded import fold
from tqgguf.runtime.forward import Tokens
from tqgguf.runtime.graph import read_graph

LONGEST_CONTEXT = 512
DEFAULT_TOKENS = 1 << 16
_VERSION = 2  # of what is cached; raised when the same inputs give other bytes
_HASHED_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class Calibrated:
    """Rows of the matrices that feedback rounded, (n_rows, n_bytes) uint8, and what made them."""

    rows: Mapping[str, U8] = field(repr=False)
    key: str


def calibrate_plan(
    model: Model,
    plan: Plan,
    tokens: Tokens,
    *,
    settings: Settings | None = None,
    advance: Callable[[int], object] = lambda _: None,
) -> Calibrated:
    """Round every matrix of the plan with error feedback on these tokens.

    tokens: (n_seq, n_tokens) int32. advance is called with the weights of each finished matrix.
    Raises UnsupportedModelError where the architecture has no forward pass.
    """
    read_graph(model)
    settings = settings or Settings()
    types = {t.name: t.type for t in plan.tensors if len(t.shape) > 1}
    key = cache_key(model, plan, tokens, settings)
    folder = user_cache() / "calibration" / key
    folder.mkdir(parents=True, exist_ok=True)
    folded = fold(model, plan.rotation.with_vectors_of(model))
    known = dict(_read_known(folder))
    rows = {}
    for name, data in calibrate(folded, types, tokens, settings, known=known):
        if name not in known:
            _keep(folder, name, data)
        rows[name] = known[name] if name in known else np.load(_file(folder, name), mmap_mode="r")
        advance(folded.tensors[name].size)
    return Calibrated(rows, key)


def calibration_weights(plan: Plan) -> int:
    """How many weights `calibrate_plan` works through, for a progress bar."""
    return sum(t.size for t in plan.tensors if len(t.shape) > 1 and t.type not in _FLOATS)


_FLOATS = ("F32", "F16", "BF16", "F64")


def read_tokens(model: Model, text: Path, *, limit: int | None = None) -> Tokens:
    """Tokenize a text into sequences that each begin as the model expects a text to begin.

    limit: tokens to use (None: DEFAULT_TOKENS). -> (n_seq, n_tokens) int32. Raises ToolError
    without llama-tokenize, FileFormatError for a file that is no text, PlanError where it is too
    short or holds tokens beyond the model's table.
    """
    _check_text(text)
    context = min(read_graph(model).n_ctx, LONGEST_CONTEXT)
    ids = np.array(_tokenize(model, text), np.int32)
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
    return tokens


def cache_key(model: Model, plan: Plan, tokens: Tokens, settings: Settings) -> str:
    """A hash of the model's bytes, the plan, the tokens and the settings, in hexadecimal."""
    digest = hashlib.blake2b(digest_size=16)
    for path in model_files(model.path):
        with path.open("rb") as file:
            while part := file.read(_HASHED_AT_ONCE):
                digest.update(part)
    choices = [(t.name, t.source, t.type, t.sides) for t in plan.tensors]
    rotation = (plan.rotation.mode, plan.rotation.block, plan.rotation.value_block)
    settled = (settings.sweeps, settings.damping, settings.drift, settings.ridge)
    said = (_VERSION, np.__version__, choices, rotation, plan.rotation.seed, settled, tokens.shape)
    digest.update(repr(said).encode())
    digest.update(tokens.tobytes())
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


def _tokenize(model: Model, text: Path) -> list[int]:
    """The text's tokens, through llama-tokenize on a file that holds only the vocabulary."""
    with TemporaryDirectory(prefix="tqgguf-") as folder:
        vocabulary = Path(folder) / "vocabulary.gguf"
        vocabulary.write_bytes(lay_out(model.metadata, []).header)
        return programs.tokenize(vocabulary, text)


def _beginning(model: Model, ids: "np.ndarray[tuple[int, ...], np.dtype[np.int32]]") -> list[int]:
    """The token that llama-tokenize put first, if it is the beginning of a text."""
    bos = model.get("tokenizer.ggml.bos_token_id")
    return [int(ids[0])] if len(ids) and bos is not None and int(ids[0]) == bos else []


def _read_known(folder: Path) -> Iterator[tuple[str, U8]]:
    for path in folder.glob("*.npy"):
        yield path.stem, np.load(path, mmap_mode="r")


def _keep(folder: Path, name: str, data: U8) -> None:
    """Write an array so that it is there as a whole or not at all."""
    scratch = folder / f"{name}.{os.getpid()}.partial"
    with scratch.open("wb") as file:
        np.save(file, data)
    scratch.replace(_file(folder, name))


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.npy"
