"""A vocabulary as GGUF stores it, whatever files it came from."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFValueType, Keys, TokenType

from tqgguf.errors import FileFormatError
from tqgguf.models.huggingface.folder import read_json
from tqgguf.models.metadata import Value, encode

CURE = "give --vocab-from with a GGUF file that has this model's tokenizer"
_WORD_START = "\u2581"  # SentencePiece's sign for a space


# What marks a token as one of control, whatever the folder's files say: the whole text of those of
# DeepSeek-Coder and Gemma, or how it begins and ends. "\uff5c" is the fullwidth bar of DeepSeek.
_SPECIAL = ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
_SPECIAL_AROUND = (("<|", "|>"), ("<\uff5c", "\uff5c>"), ("<unused", ">"))


@dataclass
class Vocabulary:
    """Tokens by id, with llama.cpp's type of each; filled by the readers of this package."""

    path: Path
    model: str  # llama.cpp's name: "llama" (SentencePiece) or "gpt2" (byte-level BPE)
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float] | None = None
    merges: list[str] | None = None
    add_bos: bool = False
    add_eos: bool = False
    first: int | None = None  # the token that the tokenizer itself puts before a text
    last: int | None = None  # ... and behind one
    shown: frozenset[str] = frozenset()  # added tokens that are text to a reader, not control
    extra: dict[str, Value] = field(default_factory=dict)

    @classmethod
    def empty(cls, path: Path, size: int, model: str, pre: str) -> "Vocabulary":
        """`size` places that no token has taken yet; the model's embedding has as many rows."""
        names = [f"[PAD{i}]" for i in range(size)]
        return cls(path, model, pre, names, [TokenType.UNUSED] * size)

    def put(self, number: Any, text: str, type: TokenType, score: float | None = None) -> None:
        """Set a token; FileFormatError if the embedding has no row for it."""
        if not isinstance(number, int) or not 0 <= number < len(self.tokens):
            raise FileFormatError(
                f"{self.path}: token {text[:40]!r} has id {number}, but config.json says "
                f"vocab_size {len(self.tokens)}"
            )
        self.tokens[number], self.types[number] = text, type
        if self.scores is not None and score is not None:
            self.scores[number] = score

    def put_added(self, added: Mapping[int, tuple[str, bool]]) -> None:
        """Set tokens that were added after training: id -> (text, whether it is special).

        One for which the embedding has no row is left out: the model cannot read it.
        """
        for number, (text, special) in added.items():
            if number >= len(self.tokens):
                continue
            if text not in self.shown and (special or _looks_special(text)):
                self.put(number, text, TokenType.CONTROL, -1000.0)
            else:
                plain = text.replace(_WORD_START, " ")
                self.put(number, plain, TokenType.USER_DEFINED, -1000.0)

    def find(self, text: str) -> int | None:
        """The id of a token, or None."""
        return self.tokens.index(text) if text in self.tokens else None

    def keys(self) -> dict[str, Value]:
        """The vocabulary as GGUF keys."""
        names = Keys.Tokenizer
        keys = {
            names.MODEL: encode(self.model),
            names.PRE: encode(self.pre),
            names.LIST: encode(self.tokens, GGUFValueType.STRING),
        }
        if self.scores is not None:
            keys[names.SCORES] = encode(np.array(self.scores, np.float32))
        keys[names.TOKEN_TYPE] = encode(np.array(self.types, np.int32))
        if self.merges is not None:
            keys[names.MERGES] = encode(self.merges, GGUFValueType.STRING)
        return keys | self.extra


def _looks_special(text: str) -> bool:
    """Control tokens that some folders do not mark as special; other converters do the same."""
    return text in _SPECIAL or any(
        text.startswith(begin) and text.endswith(end) for begin, end in _SPECIAL_AROUND
    )


def added_tokens(folder: Path, tokenizer: Mapping[str, Any]) -> dict[int, tuple[str, bool]]:
    """Tokens added after training, from every file that may list them: id -> (text, special).

    tokenizer: what tokenizer.json holds, or nothing.
    """
    added: dict[int, tuple[str, bool]] = {}
    for path, number, row in _rows_of_added(folder, tokenizer):
        match row:
            case {"content": str(text)} if str(number).isdecimal():
                added[int(number)] = (text, bool(row.get("special")))
            case _:
                raise FileFormatError(f"{path}: added token {describe(number)} is {describe(row)}")
    return added


def _rows_of_added(folder: Path, tokenizer: Mapping[str, Any]) -> Iterator[tuple[Path, Any, Any]]:
    """File, id, and {"content": text, "special": whether} of every added token."""
    path = folder / "added_tokens.json"
    for text, number in (read_json(path) if path.is_file() else {}).items():
        yield path, number, {"content": text}
    path = folder / "tokenizer.json"
    rows = tokenizer.get("added_tokens")
    for row in rows if isinstance(rows, list) else []:
        yield path, row.get("id") if isinstance(row, dict) else None, row
    path = folder / "tokenizer_config.json"
    table = read_json(path).get("added_tokens_decoder") if path.is_file() else None
    for number, row in (table if isinstance(table, dict) else {}).items():
        yield path, number, row


def describe(value: Any) -> str:
    """A JSON value in a few characters, for error texts."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else text[:117] + "..."
