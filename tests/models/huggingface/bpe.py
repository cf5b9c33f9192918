"""Byte-level BPE tokenizers: trained in a moment as released models split text, and GPT-2's own."""

import json
import lzma
from functools import cache

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from tests.tiny_models import DATA

WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?LETTERS+|NUMBERS"
    r"| ?[^\s\p{L}MARKS\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PLAIN_WORDS = WORDS.replace("LETTERS", r"\p{L}").replace("MARKS", "")
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+SUFFIX|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*SUFFIX"
    r"|NUMBERS| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# As they stand in the tokenizer.json of the model after which llama.cpp named them.
REGEXES = {
    "qwen2": PLAIN_WORDS.replace("NUMBERS", r"\p{N}"),
    "qwen35": WORDS.replace("LETTERS", r"[\p{L}\p{M}]")
    .replace("MARKS", r"\p{M}")
    .replace("NUMBERS", r"\p{N}"),
    "llama-bpe": PLAIN_WORDS.replace("NUMBERS", r"\p{N}{1,3}"),
    "smaug-bpe": PLAIN_WORDS.replace("NUMBERS", r"\p{N}{1,3}"),
    "tekken": CASED.replace("SUFFIX", "").replace("NUMBERS", r"\p{N}"),
    "gpt-4o": CASED.replace("SUFFIX", "(?i:'s|'t|'re|'ve|'m|'ll|'d)?").replace(
        "NUMBERS", r"\p{N}{1,3}"
    ),
}
IGNORE_MERGES = ("llama-bpe", "tekken")
NAMES = (*REGEXES, "gpt-2", "smollm")
TEXTS: list[str] = json.loads((DATA / "texts.json").read_text("utf-8"))
MARKS = TEXTS[-1]  # Devanagari and Thai, whose vowel signs are combining marks


@cache
def train_byte_level(name: str, size: int) -> Tokenizer:
    """A tokenizer of exactly `size` tokens whose text is split as by the model of this name."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=name in IGNORE_MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(_steps(name))
    if name.startswith("qwen"):
        tokenizer.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    corpus = (DATA / "novels-eval.txt").read_text("utf-8").splitlines(keepends=True)[:1500]
    tokenizer.train_from_iterator([*corpus, *TEXTS * 3], trainer)
    assert tokenizer.get_vocab_size() == size
    return tokenizer


def _steps(name: str) -> list[pre_tokenizers.PreTokenizer]:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=name not in REGEXES)
    if name in REGEXES:
        return [pre_tokenizers.Split(Regex(REGEXES[name]), "isolated"), byte_level]
    return [pre_tokenizers.Digits(individual_digits=True)] * (name == "smollm") + [byte_level]


def gpt2() -> Tokenizer:
    """The tokenizer of the released GPT-2: bytes, 50,000 merges in order, <|endoftext|>."""
    text = lzma.decompress((DATA / "gpt2-merges.txt.xz").read_bytes()).decode()
    merges = [tuple(line.split(" ")) for line in text.split("\n")]
    tokens = [*_bytes_in_gpt2_order(), *("".join(pair) for pair in merges), "<|endoftext|>"]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer


def _bytes_in_gpt2_order() -> list[str]:
    """Printable bytes as themselves, then the others as the characters from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
