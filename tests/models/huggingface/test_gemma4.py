"""Gemma 4's tokenizer: pieces merged in the order of a list, tokens that a reader gets to see."""

from pathlib import Path

import numpy as np
import pytest
from gguf import TokenType
from tokenizers import AddedToken, Tokenizer

from tests.llama import tokenize_each
from tests.models.huggingface.bpe import TEXTS
from tests.models.huggingface.folders import LLAMA, llama_weights, write_folder
from tests.models.huggingface.test_byte_level_bpe import converted
from tests.models.huggingface.test_hyperparameters import CONFIGS
from tests.models.huggingface.test_sentencepiece_json import as_json
from tqgguf.models import open_model

SIZES = {"num_hidden_layers": 1, "global_head_dim": 8, "layer_types": ["full_attention"]}


def folder_with(path: Path, tokenizer: Tokenizer) -> Path:
    sizes = {**LLAMA, **SIZES, "vocab_size": tokenizer.get_vocab_size()}
    weights = llama_weights(sizes)
    for name in ("pre_feedforward_layernorm", "post_feedforward_layernorm"):
        weights[f"model.layers.0.{name}.weight"] = np.ones(32, np.float32)
    for name in ("q_norm", "k_norm"):
        weights[f"model.layers.0.self_attn.{name}.weight"] = np.ones(8, np.float32)
    config = {**CONFIGS["Gemma4ForCausalLM"], **sizes, "architectures": ["Gemma4ForCausalLM"]}
    folder = write_folder(path, weights, config=config)
    (folder / "tokenizer.model").unlink()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_tokens_equal_the_tokenizers_packages(tmp_path):
    tokenizer = as_json("none")
    texts = [text for text in TEXTS if text]
    ours = tokenize_each(converted(folder_with(tmp_path, tokenizer)), texts)
    assert ours == [[1, *tokenizer.encode(text).ids] for text in texts]


@pytest.mark.parametrize(
    ("text", "kind"),
    [("<|channel>", TokenType.USER_DEFINED), ("<|turn>", TokenType.CONTROL)],
)
def test_what_stands_around_calls_and_channels_is_shown(text, kind, tmp_path):
    tokenizer = as_json("none")
    tokenizer.add_special_tokens([AddedToken(text, special=True)])
    model = open_model(folder_with(tmp_path, tokenizer))
    assert model.get("tokenizer.ggml.model") == "gemma4"
    assert (model.get("tokenizer.ggml.tokens")[-1], model.get("tokenizer.ggml.token_type")[-1]) == (
        text,
        kind,
    )
