"""Byte-level BPE: llama.cpp's tokens from a converted folder equal the tokenizers package's."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from gguf import TokenType
from tokenizers import Tokenizer, models, processors

from tests.llama import tokenize_each
from tests.models.huggingface.bpe import MARKS, NAMES, TEXTS, gpt2, train_byte_level
from tests.models.huggingface.folders import write_folder, write_json
from tqgguf.errors import FileFormatError, UnsupportedModelError
from tqgguf.models import open_model
from tqgguf.models.huggingface.tokenizer.pretokenizer import identify_by_hash
from tqgguf.pipeline import convert
from tqgguf.planning.plan import Options
from tqgguf.planning.planner import make_plan

SIZE = 2048


def folder_with(
    path: Path,
    tokenizer: Tokenizer,
    *,
    config: Mapping[str, object] | None = None,
    **settings: object,
) -> Path:
    """A small Llama folder with this tokenizer.json."""
    folder = write_folder(path, config=config)
    (folder / "tokenizer.model").unlink()
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", settings)
    return folder


def converted(folder: Path) -> Path:
    model = open_model(folder)
    path = folder / "model.gguf"
    list(convert(model, make_plan(model, Options(type="f16", rotate="none")), path))
    return path


def edit(folder: Path, change) -> None:
    path = folder / "tokenizer.json"
    value = json.loads(path.read_text("utf-8"))
    change(value)
    write_json(path, value)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_tokens_equal_the_tokenizers_packages(name, tmp_path):
    tokenizer = train_byte_level(name, SIZE)
    folder = folder_with(tmp_path, tokenizer, eos_token="<|endoftext|>")
    assert open_model(folder).get("tokenizer.ggml.pre") == name
    # llama.cpp's own version of these two regexes does not take marks for parts of words
    texts = [t for t in TEXTS if t != MARKS or name not in ("tekken", "gpt-4o")]
    assert tokenize_each(converted(folder), texts) == [tokenizer.encode(t).ids for t in texts]


@pytest.mark.slow
def test_a_released_tokenizer_is_recognised_by_its_hash(tmp_path):
    tokenizer = gpt2()
    assert identify_by_hash(tokenizer) == "gpt-2"
    config = {"vocab_size": tokenizer.get_vocab_size(), "eos_token_id": 50256}
    folder = folder_with(tmp_path, tokenizer, config=config, eos_token="<|endoftext|>")
    model = open_model(folder)
    assert model.get("tokenizer.ggml.pre") == "gpt-2"
    assert model.get("tokenizer.ggml.eos_token_id") == 50256
    assert tokenize_each(converted(folder), TEXTS) == [tokenizer.encode(t).ids for t in TEXTS]


def test_a_changed_tokenizer_is_recognised_by_its_steps(tmp_path):
    tokenizer = gpt2()
    tokenizer.add_tokens([" (normal)"])  # part of the agreed text
    folder = folder_with(tmp_path, tokenizer, config={"vocab_size": 50258})
    assert identify_by_hash(tokenizer) is None
    assert open_model(folder).get("tokenizer.ggml.pre") == "gpt-2"


def test_an_unknown_pre_tokenizer_is_an_error_that_names_the_cure(tmp_path):
    tokenizer = train_byte_level("qwen2", SIZE)
    folder = folder_with(tmp_path, tokenizer)
    edit(folder, lambda t: t["pre_tokenizer"]["pretokenizers"].pop(0))
    with pytest.raises(UnsupportedModelError, match=r"no pre_tokenizer like .*--vocab-from"):
        open_model(folder)


@pytest.mark.parametrize("step", ["Lowercase", "NFKC", "StripAccents"])
def test_a_normalizer_that_changes_text_is_an_error(step, tmp_path):
    folder = folder_with(tmp_path, train_byte_level("gpt-2", SIZE))
    edit(folder, lambda t: t.update(normalizer={"type": step}))
    with pytest.raises(UnsupportedModelError, match=f"no normalizer like .*{step}"):
        open_model(folder)


def test_another_kind_of_tokenizer_is_an_error(tmp_path):
    folder = folder_with(tmp_path, Tokenizer(models.WordPiece({"a": 0, "[UNK]": 1})))
    with pytest.raises(UnsupportedModelError, match="a WordPiece tokenizer, expected BPE"):
        open_model(folder)


def test_missing_rows_of_the_vocabulary_become_unused_tokens(tmp_path):
    folder = folder_with(
        tmp_path, train_byte_level("gpt-2", SIZE), config={"vocab_size": SIZE + 64}
    )
    model = open_model(folder)
    assert model.get("tokenizer.ggml.tokens")[-1] == f"[PAD{SIZE + 63}]"
    assert model.get("tokenizer.ggml.token_type")[-64:] == [TokenType.UNUSED] * 64
    assert tokenize_each(converted(folder), ["a b"]) == [
        train_byte_level("gpt-2", SIZE).encode("a b").ids
    ]


def test_a_token_without_an_embedding_row_is_an_error(tmp_path):
    folder = folder_with(tmp_path, train_byte_level("gpt-2", SIZE), config={"vocab_size": SIZE - 1})
    with pytest.raises(FileFormatError, match="vocab_size 2047"):
        open_model(folder)


def test_special_and_added_tokens_keep_their_kinds(tmp_path):
    tokenizer = Tokenizer.from_str(train_byte_level("gpt-2", SIZE).to_str())
    tokenizer.add_tokens(["<tool_call>", "two words"])
    folder = folder_with(
        tmp_path, tokenizer, config={"vocab_size": SIZE + 2}, eos_token={"content": "<|im_end|>"}
    )
    model = open_model(folder)
    types = model.get("tokenizer.ggml.token_type")
    assert types[:3] == [TokenType.CONTROL] * 3
    assert types[3:SIZE] == [TokenType.NORMAL] * (SIZE - 3)
    assert types[SIZE:] == [TokenType.USER_DEFINED] * 2
    assert model.get("tokenizer.ggml.eos_token_id") == 2
    text = "call <tool_call> with two words<|im_end|>"
    assert tokenize_each(converted(folder), [text]) == [tokenizer.encode(text).ids]


@pytest.mark.parametrize("flag", [None, False, True])
def test_bos_is_added_as_the_tokenizer_or_its_settings_say(flag, tmp_path):
    tokenizer = Tokenizer.from_str(train_byte_level("llama-bpe", SIZE).to_str())
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    settings = {} if flag is None else {"add_bos_token": flag}
    folder = folder_with(tmp_path, tokenizer, bos_token="<|endoftext|>", **settings)
    model = open_model(folder)
    assert model.get("tokenizer.ggml.add_bos_token") is (flag is not False)
    expected = tokenizer.encode("some text", add_special_tokens=flag is not False).ids
    assert tokenize_each(converted(folder), ["some text"]) == [expected]


def test_the_end_of_a_turn_comes_from_the_generation_config(tmp_path):
    folder = folder_with(
        tmp_path, train_byte_level("gpt-2", SIZE), eos_token="<|endoftext|>", bos_token=None
    )
    write_json(folder / "generation_config.json", {"eos_token_id": [0, 2], "temperature": 0.6})
    model = open_model(folder)
    assert model.get("tokenizer.ggml.eos_token_id") == 0
    assert model.get("tokenizer.ggml.eot_token_id") == 2
    assert model.get("general.sampling.temp") == pytest.approx(0.6)


def test_chat_templates_are_kept(tmp_path):
    folder = folder_with(
        tmp_path,
        train_byte_level("gpt-2", SIZE),
        chat_template=[{"name": "default", "template": "{{a}}"}, {"name": "tool", "template": "b"}],
    )
    model = open_model(folder)
    assert model.get("tokenizer.chat_template") == "{{a}}"
    assert model.get("tokenizer.chat_template.tool") == "b"
    assert model.get("tokenizer.chat_templates") == ["tool"]
    (folder / "chat_template.jinja").write_text("{{jinja}}")
    assert open_model(folder).get("tokenizer.chat_template") == "{{jinja}}"


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        (lambda t: t["model"].update(merges=[["a"]]), r"refuses it"),
        (lambda t: t["model"].update(vocab=3), "refuses it"),
        (lambda t: t.pop("model"), "a None tokenizer, expected BPE"),
        (lambda t: t["model"]["merges"].append("only-one"), "refuses it"),
        (lambda t: t["added_tokens"].append({"id": "x", "content": "y"}), "refuses it"),
    ],
)
def test_a_broken_tokenizer_json_is_one_line(change, fact, tmp_path):
    folder = folder_with(tmp_path, train_byte_level("gpt-2", SIZE))
    edit(folder, change)
    with pytest.raises((FileFormatError, UnsupportedModelError), match=fact) as error:
        open_model(folder)
    assert "\n" not in str(error.value)
