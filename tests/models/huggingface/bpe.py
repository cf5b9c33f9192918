"""Byte-level BPE tokenizers trained in a moment, with the pre-tokenizers of released models."""

from functools import cache

from tests.tiny_models import DATA
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|NUMBERS"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+SUFFIX|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*SUFFIX"
    r"|NUMBERS| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# As they stand in the tokenizer.json of the model after which llama.cpp named them.
REGEXES = {
    "qwen2": WORDS.replace("NUMBERS", r"\p{N}"),
    "llama-bpe": WORDS.replace("NUMBERS", r"\p{N}{1,3}"),
    "smaug-bpe": WORDS.replace("NUMBERS", r"\p{N}{1,3}"),
    "tekken": CASED.replace("SUFFIX", "").replace("NUMBERS", r"\p{N}"),
    "gpt-4o": CASED.replace("SUFFIX", "(?i:'s|'t|'re|'ve|'m|'ll|'d)?").replace(
        "NUMBERS", r"\p{N}{1,3}"
    ),
}
IGNORE_MERGES = ("llama-bpe", "tekken")
NAMES = (*REGEXES, "gpt-2", "smollm")

TEXTS = [
    "The quick brown fox jumps over the lazy dog. She'd said: \"I'LL be there, won't you?\"",
    "def f(x):\n    return {'a': x[0]**2, \"b\": not x}  # 12345 + 0x1F\n\n\tif a<=b && c!=d;\n",
    "Grüße aus Köln, où est la bibliothèque? Čeština, türkçe İstanbul; naïve café.",
    "Привет, как дела? Это проверка 2024 года. Нещо на Български.",
    "我想在apple工作1314151天～ 日本語のテキストとカタカナ、漢字。 한국어 문장입니다.",
    "مرحبا بالعالم، كيف حالك؟ שלום עולם. नमस्ते दुनिया, กรุงเทพมหานคร",
    "🚀 (normal) 😶‍🌫️ (multiple emojis concatenated) ✅ 🦙🦙 👩‍👩‍👧‍👦🏳️‍🌈",
    "3 33 333 3333 33333 333333 3333333 33333333 3.3 3..3 3...3 1,234,567.89 ½ ²³ Ⅷ",
    " leading, trailing   and    runs \t\t of  \n \n\n  \n\n\n white\r\n\r\nspace  ",
    "''''''```````\"\"\"\"......!!!!!!?????? ------======= <|x|> a'lL 'D We'Ve e=mc^2 €5 £3 #tag @me",
    "camelCaseWordsAndHTTPServers snake_case_name kebab-case ALLCAPS McDonald iPhone15Pro",
]


@cache
def train_byte_level(name: str, size: int) -> Tokenizer:
    """A tokenizer of exactly `size` tokens whose text is split as by the model of this name."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=name in IGNORE_MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(_steps(name))
    if name == "qwen2":
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
