"""The official converter's rules for special tokens, prefixes and ends, one by one."""

import json
from pathlib import Path

import pytest
from gguf import TokenType
from tokenizers import AddedToken, Regex, pre_tokenizers, processors

from tests.llama import tokenize_each
from tests.models.huggingface.bpe import REGEXES, TEXTS, train_byte_level
from tests.models.huggingface.folders import NOVELS, write_folder, write_json
from tests.models.huggingface.test_byte_level_bpe import converted, folder_with
from tests.models.huggingface.test_sentencepiece_json import as_json
from tests.models.huggingface.test_sentencepiece_json import folder_with as folder_with_pieces
from tqgguf.errors import FileFormatError, UnsupportedModelError
from tqgguf.models import open_model

SIZE = 2048
CONTROL, USER = TokenType.CONTROL, TokenType.USER_DEFINED
# A token added with special: false -> its type, and its text in the file.
RULES = {
    "<pad>": (CONTROL, "<pad>"),
    "<mask>": (CONTROL, "<mask>"),
    "<2mass>": (CONTROL, "<2mass>"),
    "[@BOS@]": (CONTROL, "[@BOS@]"),
    "<|tool|>": (CONTROL, "<|tool|>"),
    "<\uff5cfim\u2581hole\uff5c>": (CONTROL, "<\uff5cfim\u2581hole\uff5c>"),
    "<\uff5cUser\uff5c>": (CONTROL, "<\uff5cUser\uff5c>"),
    "<unused7>": (CONTROL, "<unused7>"),
    "<tool>": (USER, "<tool>"),
    "two\u2581words": (USER, "two words"),
    "<|half": (USER, "<|half"),
    "[BOS]": (USER, "[BOS]"),
}


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_what_makes_an_added_token_special(kind, tmp_path):
    config = {"vocab_size": SIZE + len(RULES)}
    tokens = [AddedToken(text, special=False, normalized=False) for text in RULES]
    if kind == "bytes":
        tokenizer = train_byte_level("qwen2", SIZE).from_str(
            train_byte_level("qwen2", SIZE).to_str()
        )
        tokenizer.add_tokens(tokens)
        folder = folder_with(tmp_path, tokenizer, config=config)
    else:
        folder = write_folder(tmp_path, config=config)
        rows = {str(SIZE + i): {"content": t, "special": False} for i, t in enumerate(RULES)}
        write_json(folder / "tokenizer_config.json", {"added_tokens_decoder": rows})
    model = open_model(folder)
    types = model.get("tokenizer.ggml.token_type")[SIZE:]
    texts = model.get("tokenizer.ggml.tokens")[SIZE:]
    assert list(zip(types, texts, strict=True)) == list(RULES.values())


def ending(*, first: str | None = None, last: str | None = None) -> processors.TemplateProcessing:
    """A post-processor that puts tokens around a text."""
    ids = {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}
    around = " ".join(word for word in (first, "$A", last) if word)
    return processors.TemplateProcessing(single=around, special_tokens=list(ids.items()))


@pytest.mark.parametrize(
    ("around", "settings", "expected"),
    [  # bos, eos, eot, add_bos, add_eos
        ({}, {"eos_token": "<|im_end|>"}, (None, 2, None, False, None)),
        ({"last": "<|endoftext|>"}, {"eos_token": "<|im_end|>"}, (None, 0, 2, False, True)),
        ({"last": "<|endoftext|>"}, {"eos_token": "<|endoftext|>"}, (None, 0, None, False, True)),
        ({"last": "<|endoftext|>"}, {}, (None, 0, None, False, True)),
        ({"first": "<|im_start|>"}, {"eos_token": "<|im_end|>"}, (1, 2, None, True, None)),
        (
            {"first": "<|im_start|>"},
            {"bos_token": "<|im_start|>", "add_bos_token": False},
            (1, None, None, False, None),
        ),
    ],
)
def test_the_token_put_behind_a_text_is_eos(around, settings, expected, tmp_path):
    """As Qwen3-Embedding, whose vector is that of the <|endoftext|> put there."""
    tokenizer = train_byte_level("qwen2", SIZE)
    tokenizer = tokenizer.from_str(tokenizer.to_str())
    if around:
        tokenizer.post_processor = ending(**around)
    config = {"bos_token_id": ..., "eos_token_id": ...}
    folder = folder_with(tmp_path, tokenizer, config=config, **settings)
    model = open_model(folder)
    keys = ("bos_token_id", "eos_token_id", "eot_token_id", "add_bos_token", "add_eos_token")
    assert tuple(model.get(f"tokenizer.ggml.{key}") for key in keys) == expected
    if "add_bos_token" not in settings:
        ours = tokenize_each(converted(folder), TEXTS[:5])
        assert ours == [tokenizer.encode(text).ids for text in TEXTS[:5]]


@pytest.mark.parametrize("asked", [None, False, True])
def test_a_prefix_space_as_the_settings_ask(asked, tmp_path):
    folder = write_folder(tmp_path)
    settings = json.loads((NOVELS / "tokenizer_config.json").read_text())
    write_json(folder / "tokenizer_config.json", settings | {"add_prefix_space": asked})
    assert open_model(folder).get("tokenizer.ggml.add_space_prefix") is (asked is not False)
    tokenizer = as_json("none" if asked is False else "prepend")
    texts = ["The sea", "sea", "a  b", "Ahab said"]
    assert tokenize_each(converted(folder), texts) == [[1, *tokenizer.encode(t).ids] for t in texts]


def test_pieces_with_the_split_that_transformers_5_adds(tmp_path):
    """As Mistral v0.3 saved again: the split is another tokenizer's, SentencePiece has none."""
    tokenizer = as_json("metaspace")
    plain = tokenizer.from_str(tokenizer.to_str())
    split = pre_tokenizers.Split(Regex(REGEXES["tekken"]), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, tokenizer.pre_tokenizer])
    folder = folder_with_pieces(tmp_path, tokenizer)
    texts = ["The sea was blue.", "Call me Ishmael", "some years ago, never mind"]
    assert tokenize_each(converted(folder), texts) == [[1, *plain.encode(t).ids] for t in texts]
    assert open_model(folder).get("tokenizer.ggml.add_space_prefix") is True


def older_files(folder: Path, name: str, settings: dict[str, str]) -> Path:
    """vocab.json and merges.txt of a tokenizer, in place of its tokenizer.json."""
    model = json.loads(train_byte_level(name, SIZE).to_str())["model"]
    (folder / "tokenizer.json").unlink()
    write_json(folder / "vocab.json", model["vocab"])
    merges = [" ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", "utf-8")
    added = {str(i): {"content": t, "special": True} for i, t in enumerate(["<|endoftext|>"])}
    write_json(folder / "tokenizer_config.json", {"added_tokens_decoder": added, **settings})
    return folder


@pytest.mark.parametrize(
    ("name", "kind"),
    [("gpt-2", "GPT2Tokenizer"), ("qwen2", "Qwen2TokenizerFast"), ("qwen2", "Qwen2Tokenizer")],
)
def test_vocab_json_and_merges_txt_alone(name, kind, tmp_path):
    tokenizer = train_byte_level(name, SIZE)
    whole = open_model(folder_with(tmp_path, tokenizer))
    folder = older_files(tmp_path, name, {"tokenizer_class": kind})
    model = open_model(folder)
    for key in ("pre", "merges", "tokens"):
        assert model.get(f"tokenizer.ggml.{key}") == whole.get(f"tokenizer.ggml.{key}")
    texts = [t for t in TEXTS if "<|" not in t]
    assert tokenize_each(converted(folder), texts) == [tokenizer.encode(t).ids for t in texts]


def test_older_files_that_do_not_say_enough(tmp_path):
    folder_with(tmp_path, train_byte_level("gpt-2", SIZE))
    folder = older_files(tmp_path, "gpt-2", {"tokenizer_class": "CohereTokenizer"})
    with pytest.raises(UnsupportedModelError, match="of a CohereTokenizer do not say how text is"):
        open_model(folder)
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer"})
    write_json(folder / "vocab.json", {"a": "b"})
    with pytest.raises(FileFormatError, match="expected an id for each token"):
        open_model(folder)
