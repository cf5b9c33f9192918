"""tokenizer.model with tokens added beside it, against the tokenizers package's reading."""

import shutil
from pathlib import Path

import pytest
from gguf import TokenType

from tests.llama import tokenize_each
from tests.models.huggingface.folders import NOVELS, write_folder, write_json
from tests.models.huggingface.test_byte_level_bpe import converted
from tests.models.huggingface.test_sentencepiece_json import as_json
from tqgguf.models import open_model

SETTINGS = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "<|im_end|>"}
ADDED = {
    "2048": {"content": "<|im_start|>", "special": True},
    "2049": {"content": "<|im_end|>", "special": False},
    "2050": {"content": "<tool>", "special": False},
    "2051": {"content": "two\u2581words", "special": False},
    "9999": {"content": "<no row>", "special": True},
}


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = write_folder(tmp_path, config={"vocab_size": 2056})
    write_json(folder / "tokenizer_config.json", SETTINGS | {"added_tokens_decoder": ADDED})
    return folder


def test_added_tokens_have_their_kinds(folder):
    model = open_model(folder)
    tokens, types = (model.get(f"tokenizer.ggml.{key}") for key in ("tokens", "token_type"))
    assert tokens[2048:2053] == ["<|im_start|>", "<|im_end|>", "<tool>", "two words", "[PAD2052]"]
    assert types[2048:2052] == [TokenType.CONTROL] * 2 + [TokenType.USER_DEFINED] * 2
    assert types[2052:] == [TokenType.UNUSED] * 4
    assert types[:4] == [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, TokenType.BYTE]
    assert model.get("tokenizer.ggml.eos_token_id") == 2049


def test_added_tokens_are_found_in_texts(folder):
    tokenizer = as_json("prepend")
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>", "<tool>"])
    texts = ["<|im_start|>", "a<tool>b", "some text<|im_end|>"]
    ours = tokenize_each(converted(folder), texts)
    for ids, text in zip(ours, texts, strict=True):
        assert [i for i in ids if i >= 2048] == [i for i in tokenizer.encode(text).ids if i >= 2048]


def test_added_tokens_json_counts_too(folder):
    write_json(folder / "tokenizer_config.json", SETTINGS)
    write_json(folder / "added_tokens.json", {"<extra>": 2055})
    model = open_model(folder)
    assert model.get("tokenizer.ggml.tokens")[2055] == "<extra>"
    assert model.get("tokenizer.ggml.token_type")[2055] == TokenType.USER_DEFINED


@pytest.mark.parametrize("flag", [None, True, False])
def test_bos_is_added_unless_the_settings_forbid_it(flag, folder):
    shutil.copy(NOVELS / "tokenizer.model", folder)
    write_json(folder / "tokenizer_config.json", {} if flag is None else {"add_bos_token": flag})
    (ids,) = tokenize_each(converted(folder), ["The"])
    assert (ids[0] == 1) is (flag is not False)


def test_gemma_puts_no_space_before_a_text(tmp_path):
    config = {"architectures": ["GemmaForCausalLM"], "head_dim": 8, "hidden_act": "gelu"}
    model = open_model(write_folder(tmp_path, config=config))
    assert model.get("tokenizer.ggml.add_space_prefix") is False
    assert open_model(NOVELS).get("tokenizer.ggml.add_space_prefix") is True


def test_a_model_that_drops_doubled_spaces_says_so():
    assert open_model(NOVELS).get("tokenizer.ggml.remove_extra_whitespaces") is True
