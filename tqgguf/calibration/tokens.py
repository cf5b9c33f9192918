"""A text as tokens: sequences that each begin as the model expects a text to begin.

A text is a user's file or the built-in one (builtin.md says what is in it). What a tokenizer made
of a text is kept in the user's cache, under the hash of the vocabulary and the text.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.resources import as_file, files
from pathlib import Path
from threading import Thread

import numpy as np

from tqgguf.calibration.kept import Arrays, keep
from tqgguf.calibration.own_text import OWN, own_text
from tqgguf.errors import FileFormatError, PlanError
from tqgguf.kernels.dtypes import I32
from tqgguf.llamacpp.tokenizer import tokenize
from tqgguf.machine.cache import user_cache
from tqgguf.machine.content import digest, expect_content
from tqgguf.machine.folders import own_folder
from tqgguf.models import Model, model_files, open_model
from tqgguf.network.forward import Tokens
from tqgguf.network.graph import read_graph

BUILTIN = "the built-in text"
LONGEST_CONTEXT = 512
DEFAULT_TOKENS = 1 << 16
SHORT_CONTEXT = 256  # of a short pass, which looks at many places of a text
SHORT_TOKENS = 1024

_expected: list[Thread] = []  # that fill the cache


@dataclass(frozen=True)
class Text:
    """The tokens of a text: what a text begins with, if anything, and the rest."""

    name: str
    tokenizer: str
    first: I32 = field(repr=False)
    body: I32 = field(repr=False)


@contextmanager
def builtin_text() -> Iterator[Path]:
    """The file of the built-in text."""
    with as_file(files("tqgguf.calibration") / "builtin.txt") as path:
        yield path


def read_text(
    model: Model,
    path: Path | None,
    *,
    name: str | None = None,
    meanwhile: Callable[[], object] = lambda: None,
) -> Text:
    """Tokenize a text as llama.cpp does; path None: the built-in text. name: what to call it.

    meanwhile: called while another program does that, if one has to. Raises ToolError where no
    llama.cpp is at hand for that, FileFormatError for a file that is no text, PlanError where it
    holds nothing, or tokens beyond the model's table.
    """
    while _expected:
        meanwhile()
        _expected.pop().join()
    if path is None:
        with builtin_text() as file:
            return _read(model, file, BUILTIN, meanwhile)
    return _read(model, path, name, meanwhile)


def expect_text(model: Path, text: Path | None) -> None:
    """Have a text made tokens while this process does something else; `read_text` waits for that.

    They are kept for it. Whoever asks for them is told what is wrong with them.
    """

    def read() -> None:
        with suppress(Exception), builtin_text() as builtin:
            opened = open_model(model)
            expect_content(model_files(model))
            _read(opened, text or builtin, None, lambda: None)

    _expected.append(Thread(target=read))
    _expected[-1].start()


def _read(model: Model, path: Path, name: str | None, meanwhile: Callable[[], object]) -> Text:
    _check_text(path)
    ids, tokenizer = _tokenized(model, path, meanwhile)
    called = name or str(path)
    n_first = _beginning(model, ids)
    if len(ids) == n_first:
        raise PlanError(f"{called}: nothing in it becomes a token; calibration needs prose")
    table = model.tensors.get("token_embd.weight")
    n_vocab = table.n_rows if table else 0
    if int(ids.max()) >= n_vocab:
        raise PlanError(
            f"{called}: token {int(ids.max())} is beyond the model's table of {n_vocab}; the "
            "tokenizer belongs to another model"
        )
    return Text(called, tokenizer, ids[:n_first], ids[n_first:])


def read_own_text(model: Model, *, tokens: int | None, threads: int | None) -> Text:
    """Tokenize a text that the model itself writes; see `own_text` and `read_text`."""
    with own_folder() as folder:
        path = folder / "text.txt"
        path.write_bytes(own_text(model, tokens=tokens, threads=threads))
        return read_text(model, path, name=OWN)


def sequences(model: Model, text: Text, *, limit: int | None = None) -> Tokens:
    """The text from its beginning, in sequences as long as the model or LONGEST_CONTEXT allows.

    limit: tokens to use (None: DEFAULT_TOKENS); of the built-in text and of the model's own, which
    change their subject all the time, they are spread over the whole. -> (n_seq, n_tokens) int32.
    Raises PlanError for a text or a limit that is too short for one.
    """
    size = min(read_graph(model).n_ctx, LONGEST_CONTEXT) - len(text.first)
    wanted = DEFAULT_TOKENS if limit is None else limit
    for what, tokens in ((text.name, len(text.body)), ("--calibrate-tokens", wanted)):
        if tokens < size:
            raise PlanError(
                f"{what}: {tokens:,} tokens, and calibration needs at least {size:,}; 20,000 or "
                "more do well"
            )
    available = len(text.body) // size
    count = min(len(text.body), wanted) // size
    is_mixed = text.name in (BUILTIN, OWN)
    places = _spread(available, count) if is_mixed else np.arange(count, dtype=np.int32)
    return _cut(text, places * size, size)


def short_sequences(model: Model, text: Text) -> Tokens:
    """Some SHORT_TOKENS tokens from all over the text: (n_seq, n_tokens) int32."""
    wanted = min(read_graph(model).n_ctx, SHORT_CONTEXT) - len(text.first)
    size = max(1, min(wanted, len(text.body)))
    available = len(text.body) // size
    count = min(available, max(1, SHORT_TOKENS // size))
    return _cut(text, _spread(available, count) * size, size)


def _spread(available: int, count: int) -> I32:
    """The indices of `count` of `available` places, evenly apart: (count,) int32."""
    return (np.arange(count) * available // count).astype(np.int32)


def _cut(text: Text, starts: I32, size: int) -> Tokens:
    first = np.broadcast_to(text.first, (len(starts), len(text.first)))
    body = text.body[starts[:, None] + np.arange(size)]
    return np.concatenate([first, body], axis=1).astype(np.int32)


def _tokenized(model: Model, path: Path, meanwhile: Callable[[], object]) -> tuple[I32, str]:
    """The text's ids and who made them, kept since the last time."""
    said = {k: v for k, v in model.metadata.items() if k.startswith(("tokenizer.", "general.name"))}
    parts = (part for k, v in sorted(said.items()) for part in (k.encode(), v.raw))
    key = digest([*parts, path.read_bytes()])

    def make() -> Arrays:
        ids, tokenizer = tokenize(model.metadata, path, meanwhile=meanwhile)
        return [np.array(ids, np.int32), np.array([tokenizer])]

    ids, tokenizer = keep(user_cache() / "tokens", key, "ids", make)
    return ids, str(tokenizer[0])


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


def _beginning(model: Model, ids: I32) -> int:
    """How many tokens llama.cpp put first as the beginning of a text: 0 or 1."""
    bos = model.get("tokenizer.ggml.bos_token_id")
    return int(len(ids) > 0 and bos is not None and int(ids[0]) == bos)
