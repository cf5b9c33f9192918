"""tokenizer.json of the `tokenizers` package: byte-level BPE, and SentencePiece's BPE as JSON."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf import Keys, TokenType

from tqgguf.errors import FileFormatError, UnsupportedModelError
from tqgguf.models.huggingface.architecture import Merging
from tqgguf.models.huggingface.folder import load_optional, read_json
from tqgguf.models.huggingface.tokenizer.older import from_files
from tqgguf.models.huggingface.tokenizer.pretokenizer import identify
from tqgguf.models.huggingface.tokenizer.vocabulary import CURE, Vocabulary, added_tokens, describe
from tqgguf.models.metadata import encode


def read_bpe(folder: Path, size: int, merging: Merging | None = None) -> Vocabulary:
    """The vocabulary of tokenizer.json; size: rows of the embedding.

    merging: how the graph's pieces are merged by rank, where they are not by score.
    Raises FileFormatError for a broken file, UnsupportedModelError for a tokenizer that llama.cpp
    does not have.
    """
    path, description = _description(folder)
    model = description.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        kind = model.get("type") if isinstance(model, dict) else None
        raise UnsupportedModelError(f"{path}: a {kind} tokenizer, expected BPE; {CURE}")
    tokenizer = _load(path, description)
    merges = [_merge(path, m) for m in _of_type(path, model, "merges", list)]
    if model.get("byte_fallback"):
        vocabulary = _read_pieces(path, size, description, merges)
        if merging is not None:
            _merge_by_rank(vocabulary, merges, merging)
    else:
        vocabulary = _read_byte_level(path, size, description, tokenizer)
        vocabulary.merges = [" ".join(pair) for pair in merges]
    vocabulary.put_added(added_tokens(folder, description))
    _note_added_ends(vocabulary, tokenizer)
    return vocabulary


def _description(folder: Path) -> tuple[Path, dict[str, Any]]:
    """tokenizer.json, or the same made of vocab.json and merges.txt, and the file it is from."""
    path = folder / "tokenizer.json"
    return (
        (path, read_json(path)) if path.is_file() else (folder / "vocab.json", from_files(folder))
    )


def _load(path: Path, description: Mapping[str, Any]) -> Any:
    package = load_optional("tokenizers")
    try:
        return package.Tokenizer.from_str(json.dumps(description))
    except Exception as error:  # noqa: BLE001 - tokenizers raises nothing more precise
        fact = str(error).splitlines()[0]
        raise FileFormatError(f"{path}: the tokenizers package refuses it: {fact}") from None


def _of_type(path: Path, model: Mapping[str, Any], key: str, type: type) -> Any:
    value = model.get(key)
    if not isinstance(value, type):
        raise FileFormatError(f"{path}: model.{key} is not a {type.__name__}")
    return value


def _merge(path: Path, merge: Any) -> tuple[str, str]:
    """The two halves of a merge, written "a b" or, by newer versions, ["a", "b"]."""
    match merge.split(" ") if isinstance(merge, str) else merge:
        case [str(left), str(right)] if left and right and " " not in left + right:
            return left, right
    raise FileFormatError(f"{path}: merge {describe(merge)} is not a pair of tokens")


def _read_byte_level(
    path: Path, size: int, description: Mapping[str, Any], tokenizer: Any
) -> Vocabulary:
    normalizer = description.get("normalizer")
    pre = identify(tokenizer, description)
    if pre is None or not _leaves_text_alone(normalizer):
        part = "normalizer" if pre else "pre_tokenizer"
        raise UnsupportedModelError(
            f"{path}: llama.cpp has no {part} like {describe(description.get(part))}; {CURE}"
        )
    vocabulary = Vocabulary.empty(path, size, "gpt2", pre)
    for text, number in _of_type(path, description["model"], "vocab", dict).items():
        vocabulary.put(number, text, TokenType.NORMAL)
    return vocabulary


def _leaves_text_alone(normalizer: Any) -> bool:
    """Whether text in Unicode's composed form passes unchanged; llama.cpp normalizes nothing."""
    match normalizer:
        case None | {"type": "NFC"}:
            return True
        case {"type": "Sequence", "normalizers": [*steps]}:
            return all(_leaves_text_alone(step) for step in steps)
    return False


def _read_pieces(
    path: Path, size: int, description: Mapping[str, Any], merges: list[tuple[str, str]]
) -> Vocabulary:
    """SentencePiece's BPE as the tokenizers package writes it.

    llama.cpp merges the pair whose result has the highest score, the tokenizers package the pair
    that comes first in the list of merges; so a token's score is minus its first place there.
    """
    model = description["model"]
    vocabulary = Vocabulary.empty(path, size, "llama", "default")
    vocabulary.scores = [-10000.0] * size
    scores: dict[str, float] = {}
    for rank, pair in enumerate(merges):
        scores.setdefault("".join(pair), -float(rank + 1))
    for text, number in _of_type(path, model, "vocab", dict).items():
        vocabulary.put(number, text, _piece_type(text, model.get("unk_token")), scores.get(text, 0))
    vocabulary.extra[Keys.Tokenizer.ADD_PREFIX] = encode(_prepends_space(path, description))
    return vocabulary


def _piece_type(text: str, unknown: str | None) -> TokenType:
    if text == unknown:
        return TokenType.UNKNOWN
    is_byte = len(text) == 6 and text.startswith("<0x") and text.endswith(">")
    return TokenType.BYTE if is_byte else TokenType.NORMAL


def _prepends_space(path: Path, description: Mapping[str, Any]) -> bool:
    """Whether text gets a leading space; UnsupportedModelError if something else happens to it."""
    steps = [*_flat(description.get("normalizer")), *_flat(description.get("pre_tokenizer"))]
    prepends, replaces = False, False
    for step in steps:
        match step:
            case {"type": "Prepend", "prepend": "\u2581"}:
                prepends = True
            case {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}:
                replaces = True
            case {"type": "Metaspace", "replacement": "\u2581", "split": False, **rest}:
                prepends, replaces = rest.get("prepend_scheme") != "never", True
            case {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious"}:
                pass  # Gemma: no spaces are left to split at
            case {"type": "Split", "pattern": {"Regex": _}, "behavior": "Isolated"}:
                pass  # transformers 5 puts it before Mistral's pieces, which no split belongs to
            case _:
                replaces = False
                break
    if not replaces:
        raise UnsupportedModelError(
            f"{path}: llama.cpp has no normalizer like {describe(steps)}; {CURE}"
        )
    return prepends


def _merge_by_rank(vocabulary: Vocabulary, merges: list[tuple[str, str]], merging: Merging) -> None:
    """Keep the merges as they are; llama.cpp reads no score then."""
    vocabulary.model = vocabulary.pre = merging.name
    vocabulary.merges = [" ".join(pair) for pair in merges]
    vocabulary.scores = [-1000.0] * len(vocabulary.tokens)
    vocabulary.shown = merging.shown
    vocabulary.extra[Keys.Tokenizer.ADD_PREFIX] = encode(False)
    vocabulary.add_bos = True


def _flat(step: Any) -> list[Any]:
    """The steps of a normalizer or pre-tokenizer."""
    match step:
        case None:
            return []
        case {"type": "Sequence", "normalizers": [*steps]} | {
            "type": "Sequence",
            "pretokenizers": [*steps],
        }:
            return [inner for s in steps for inner in _flat(s)]
    return [step]


def _note_added_ends(vocabulary: Vocabulary, tokenizer: Any) -> None:
    """See which tokens the tokenizer itself puts around a text."""
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    whole = tokenizer.encode("a").ids
    if plain and whole[0] != plain[0]:
        vocabulary.first, vocabulary.add_bos = whole[0], True
    if plain and whole[-1] != plain[-1]:
        vocabulary.last, vocabulary.add_eos = whole[-1], True
