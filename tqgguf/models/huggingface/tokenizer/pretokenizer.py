"""Which of llama.cpp's pre-tokenizers splits text as a tokenizer.json does.

GGUF stores a name (tokenizer.ggml.pre), llama.cpp has the code for it. The name is found from the
ids that the tokenizer gives a fixed text, hashed: the table of known hashes, like the text, is an
agreement among converters (pretokenizers.json). A tokenizer that is not in the table, for example
one with added tokens or trained anew, is recognised by its pre-tokenizer's own description.
"""

import json
from collections.abc import Iterator, Mapping
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Any

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"


def _words(numbers: str, *, marks: str = "") -> str:
    """The regex of the Llama 3 and Qwen families, which differ in numbers and combining marks."""
    letters = rf"[\p{{L}}{marks}]" if marks else r"\p{L}"
    return (
        rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?{letters}+|{numbers}"
        rf"| ?[^\s\p{{L}}{marks}\p{{N}}]+[\r\n]*|{_TAIL}"
    )


def _cased_words(suffix: str, numbers: str) -> str:
    """The regex of GPT-4o and Mistral's Tekken, which split words where the case changes."""
    upper, lower = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
    start = r"[^\r\n\p{L}\p{N}]?"
    return (
        rf"{start}{upper}*{lower}+{suffix}|{start}{upper}+{lower}*{suffix}|{numbers}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_TAIL}"
    )


_GPT2 = "bytes with words"
_BYTES = "bytes"
_DIGITS = "digits one by one"

QWEN2_WORDS = _words(r"\p{N}")

# (steps of the pre-tokenizer, whether whole words are looked up before merging) -> name
_BY_STEPS: Mapping[tuple[tuple[str, ...], bool], str] = {
    ((_GPT2,), False): "gpt-2",
    ((_DIGITS, _GPT2), False): "smollm",
    ((QWEN2_WORDS, _BYTES), False): "qwen2",
    ((_words(r"\p{N}", marks=r"\p{M}"), _BYTES), False): "qwen35",
    ((_words(r"\p{N}{1,3}"), _BYTES), True): "llama-bpe",
    ((_words(r"\p{N}{1,3}"), _BYTES), False): "smaug-bpe",
    ((_cased_words("", r"\p{N}"), _BYTES), True): "tekken",
    ((_cased_words(rf"{_CONTRACTIONS}?", r"\p{N}{1,3}"), _BYTES), False): "gpt-4o",
}


def identify(tokenizer: Any, description: Mapping[str, Any]) -> str | None:
    """llama.cpp's name for the pre-tokenizer of a byte-level BPE tokenizer, or None.

    tokenizer: a tokenizers.Tokenizer; description: the same tokenizer.json as parsed.
    """
    return identify_by_hash(tokenizer) or identify_by_steps(description)


def identify_by_hash(tokenizer: Any) -> str | None:
    """The name that belongs to the ids of the agreed text, or None."""
    table = _table()
    ids = tokenizer.encode(table["text"]).ids
    name: str | None = table["names"].get(sha256(str(ids).encode()).hexdigest())
    return name


def identify_by_steps(description: Mapping[str, Any]) -> str | None:
    """The name of the pre-tokenizer that takes the same steps, or None."""
    steps = tuple(_steps(description.get("pre_tokenizer")))
    whole_words = bool(description.get("model", {}).get("ignore_merges"))
    return _BY_STEPS.get((steps, whole_words))


@cache
def _table() -> dict[str, Any]:
    text = files(__package__).joinpath("pretokenizers.json").read_text("utf-8")
    table: dict[str, Any] = json.loads(text)
    return table


def _steps(step: Any) -> Iterator[str]:
    """A pre-tokenizer's steps in order, in the words of _BY_STEPS; others as their JSON."""
    match step:
        case {"type": "Sequence", "pretokenizers": [*steps]}:
            for inner in steps:
                yield from _steps(inner)
        case {
            "type": "Split",
            "pattern": {"Regex": regex},
            "behavior": "Isolated",
            "invert": False,
        }:
            yield str(regex)
        case {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Removed", "invert": True}:
            yield str(regex)  # what matches is kept and the rest, nothing, removed
        case {"type": "ByteLevel", "add_prefix_space": False, **rest}:
            yield _GPT2 if rest.get("use_regex", True) else _BYTES
        case {"type": "Digits", "individual_digits": True}:
            yield _DIGITS
        case _:
            yield json.dumps(step, sort_keys=True)
