"""SentencePiece's tokenizer.model."""

from pathlib import Path
from typing import Any

from gguf import Keys, TokenType

from tqgguf.errors import FileFormatError
from tqgguf.models.content import what_it_is
from tqgguf.models.huggingface.folder import load_optional, read_json
from tqgguf.models.huggingface.tokenizer.vocabulary import CURE, Vocabulary, added_tokens
from tqgguf.models.metadata import encode

_WORD_START = "\u2581"
_UNUSED_SCORE = -10000.0


def read_sentencepiece(folder: Path, size: int, space_prefix: bool | None) -> Vocabulary:
    """The vocabulary of tokenizer.model and the tokens added beside it.

    size: rows of the embedding; space_prefix: whether text gets a leading space, None: as the
    model itself does. Raises FileFormatError if the file is not SentencePiece's.
    """
    path = folder / "tokenizer.model"
    pieces, texts = _load(path)
    if len(pieces) > size:
        raise FileFormatError(
            f"{path}: {len(pieces)} tokens, but config.json says vocab_size {size}"
        )
    vocabulary = Vocabulary.empty(path, size, "llama", "default")
    vocabulary.scores = [_UNUSED_SCORE] * size
    vocabulary.add_bos = True
    for i, text in enumerate(texts):
        vocabulary.put(i, text, _type(pieces, i), pieces.get_score(i))
    beside = folder / "tokenizer.json"
    tokenizer = read_json(beside) if beside.is_file() else {}
    vocabulary.put_added(added_tokens(folder, tokenizer))
    if space_prefix is None:
        space_prefix = _asked_for(folder, _prepends_space(pieces))
    vocabulary.extra[Keys.Tokenizer.ADD_PREFIX] = encode(space_prefix)
    if pieces.encode("a  b ") == pieces.encode("a b"):  # for readers other than llama.cpp
        vocabulary.extra[Keys.Tokenizer.REMOVE_EXTRA_WS] = encode(True)
    return vocabulary


def not_sentencepiece(path: Path) -> str:
    """Why a file is no SentencePiece model, or nothing if it is one."""
    try:
        _load(path)
    except FileFormatError:
        return what_it_is(path) or (
            "tiktoken's text format, not a SentencePiece model"
            if _looks_like_tiktoken(path)
            else "not a SentencePiece model"
        )
    return ""


def _looks_like_tiktoken(path: Path) -> bool:
    """Lines of base64, a space and a rank."""
    first = path.read_bytes()[:200].split(b"\n")[0].split()
    return len(first) == 2 and first[1].isdigit()


def _load(path: Path) -> tuple[Any, list[str]]:
    """The model and the texts of its pieces."""
    package = load_optional("sentencepiece")
    try:
        # not by its name, which may be no UTF-8; empty bytes would load nothing and say nothing
        pieces = package.SentencePieceProcessor(model_proto=path.read_bytes() or b"\0")
        return pieces, [pieces.id_to_piece(i) for i in range(len(pieces))]
    except (RuntimeError, OSError, UnicodeDecodeError):
        raise FileFormatError(f"{path}: not a SentencePiece model; {CURE}") from None


def _type(pieces: Any, number: int) -> TokenType:
    if pieces.is_unknown(number):
        return TokenType.UNKNOWN
    if pieces.is_control(number):
        return TokenType.CONTROL
    if pieces.is_unused(number):
        return TokenType.UNUSED
    return TokenType.BYTE if pieces.is_byte(number) else TokenType.NORMAL


def _asked_for(folder: Path, own: bool) -> bool:
    """Whether a text gets a leading space: what tokenizer_config.json says overrides the model."""
    path = folder / "tokenizer_config.json"
    asked = read_json(path).get("add_prefix_space") if path.is_file() else None
    return asked if isinstance(asked, bool) else own


def _prepends_space(pieces: Any) -> bool:
    """Whether the model puts a space before a text (its add_dummy_prefix)."""
    first: list[str] = pieces.encode("a", out_type=str)
    return bool(first) and first[0].startswith(_WORD_START)
