"""Embedding models and rerankers: pooling, names without a head, the two rows that rank."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.models.huggingface.bpe import train_byte_level
from tests.models.huggingface.folders import LLAMA, llama_weights, write_folder, write_json
from tests.models.huggingface.test_weights import gemma3_weights
from tqgguf.errors import FileFormatError, UnsupportedModelError
from tqgguf.models import open_model
from tqgguf.planning.plan import Options
from tqgguf.planning.planner import make_plan

QWEN3 = {**LLAMA, "architectures": ["Qwen3ForCausalLM"], "head_dim": 8}


def qwen3_weights() -> dict[str, np.ndarray]:
    norms = (f"model.layers.{i}.self_attn.{kind}_norm.weight" for i in range(2) for kind in "qk")
    return llama_weights() | {name: np.ones(8, np.float32) for name in norms}


def pooled(folder: Path, settings: object) -> Path:
    module = {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}
    write_json(folder / "modules.json", [{"type": "x.Transformer", "path": ""}, module])
    (folder / "1_Pooling").mkdir(exist_ok=True)
    write_json(folder / "1_Pooling" / "config.json", settings)
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_folder(tmp_path / "m", qwen3_weights(), config=QWEN3)


@pytest.mark.parametrize(
    ("settings", "number"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, 1),
        ({"pooling_mode_cls_token": True}, 2),
        ({"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}, 3),
        ({"pooling_mode": "lasttoken"}, 3),
    ],
)
def test_pooling(settings, number, folder):
    assert open_model(folder).get("qwen3.pooling_type") is None
    assert open_model(pooled(folder, settings)).get("qwen3.pooling_type") == number


@pytest.mark.parametrize(
    "settings",
    [
        {"pooling_mode_max_tokens": True},
        {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
        {"pooling_mode": "weighted"},
        {},
    ],
)
def test_another_pooling_is_named(settings, folder):
    with pytest.raises(UnsupportedModelError, match=r"which llama\.cpp does not; expected mean"):
        open_model(pooled(folder, settings))


def test_modules_that_point_elsewhere(folder):
    write_json(folder / "modules.json", [{"type": "a.Pooling", "path": "../x"}])
    with pytest.raises(FileFormatError, match="expected a folder's name"):
        open_model(folder)


@pytest.mark.parametrize("name", ["Qwen3Model", "Qwen3ForCausalLM"])
def test_a_model_saved_without_its_head(name, folder, tmp_path):
    bare = {n.removeprefix("model."): w for n, w in qwen3_weights().items()}
    config = {**QWEN3, "architectures": [name], "tie_word_embeddings": name != "Qwen3Model"}
    model = open_model(write_folder(tmp_path / "bare", bare, config=config))
    assert list(model.tensors) == list(open_model(folder).tensors)


def test_an_embedding_is_not_rotated(folder):
    model = open_model(pooled(folder, {"pooling_mode": "lasttoken"}))
    with pytest.raises(UnsupportedModelError, match="returns the stream itself"):
        make_plan(model, Options(type="q8_0", rotate="fused"))
    assert make_plan(model, Options(type="q8_0", rotate="values")).rotation.mode == "values"


def embedding_gemma(path: Path) -> Path:
    """As EmbeddingGemma: both directions, no head, matrices behind the pooling."""
    bare = {n.removeprefix("model."): w for n, w in gemma3_weights().items()}
    config = {
        "architectures": ["Gemma3TextModel"],
        "model_type": "gemma3_text",
        "num_hidden_layers": 1,
        "head_dim": 8,
        "hidden_act": None,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 8,
        "sliding_window": 16,
        "use_bidirectional_attention": True,
        "rope_local_base_freq": 10000.0,
    }
    folder = pooled(write_folder(path, bare, config=config), {"pooling_mode_mean_tokens": True})
    modules = json.loads((folder / "modules.json").read_text())
    rng = np.random.default_rng(5)
    for number, shape in ((2, (48, 32)), (3, (32, 48))):
        modules.append({"type": "sentence_transformers.models.Dense", "path": f"{number}_Dense"})
        at = folder / f"{number}_Dense"
        at.mkdir()
        save_file(
            {"linear.weight": rng.standard_normal(shape, np.float32)}, at / "model.safetensors"
        )
        identity = "torch.nn.modules.linear.Identity"
        settings = {"in_features": shape[1], "out_features": shape[0]}
        settings |= {"bias": False, "activation_function": identity}
        write_json(at / "config.json", settings)
    modules.append({"type": "sentence_transformers.models.Normalize", "path": "4_Normalize"})
    write_json(folder / "modules.json", modules)
    return folder


def test_embedding_gemma(tmp_path):
    model = open_model(embedding_gemma(tmp_path))
    assert model.get("general.architecture") == "gemma-embedding"
    assert model.get("gemma-embedding.pooling_type") == 1
    assert model.notes == ()
    assert model.get("gemma-embedding.dense_2_feat_in") == 32
    assert model.get("gemma-embedding.dense_2_feat_out") == 48
    rng = np.random.default_rng(5)
    for name, shape in (("dense_2", (48, 32)), ("dense_3", (32, 48))):
        np.testing.assert_array_equal(
            model.tensors[f"{name}.weight"].read(), rng.standard_normal(shape, np.float32)
        )
    assert "output.weight" not in model.tensors


def test_matrices_behind_the_pooling_that_no_graph_reads(folder, tmp_path):
    gemma = embedding_gemma(tmp_path / "gemma")
    for place in ("modules.json", "1_Pooling", "2_Dense", "3_Dense"):
        (gemma / place).rename(folder / place)
    model = open_model(folder)
    assert ["left out what follows the pooling (2_Dense, 3_D" in n for n in model.notes] == [True]
    assert "dense_2.weight" not in model.tensors


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"bias": True}, "2_Dense: bias True, activation Identity; llama.cpp multiplies by a"),
        ({"activation_function": "torch.nn.modules.activation.Tanh"}, "activation Tanh"),
    ],
)
def test_layers_behind_the_pooling_that_are_more_than_a_matrix(change, named, tmp_path):
    path = embedding_gemma(tmp_path) / "2_Dense" / "config.json"
    write_json(path, {**json.loads(path.read_text()), **change})
    with pytest.raises(UnsupportedModelError, match=named):
        open_model(tmp_path)


def test_one_matrix_behind_the_pooling_of_another_width(tmp_path):
    modules = json.loads((embedding_gemma(tmp_path) / "modules.json").read_text())
    write_json(tmp_path / "modules.json", [m for m in modules if m["path"] != "3_Dense"])
    with pytest.raises(UnsupportedModelError, match="1 matrices behind the pooling, from 32 to 48"):
        open_model(tmp_path)


def reranker(folder: Path, *, tied: bool) -> Path:
    """A Qwen3 folder whose tokenizer has yes and no."""
    weights = qwen3_weights()
    if not tied:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"] * 2
    write_folder(folder, weights, config={**QWEN3, "tie_word_embeddings": tied})
    (folder / "tokenizer.model").unlink()
    tokenizer = json.loads(train_byte_level("qwen2", LLAMA["vocab_size"]).to_str())
    vocabulary = tokenizer["model"]["vocab"]
    for word in ("yes", "no"):
        last = max(vocabulary, key=vocabulary.get)
        if word not in vocabulary:
            vocabulary[word] = vocabulary.pop(last)
            tokenizer["model"]["merges"] = [
                m for m in tokenizer["model"]["merges"] if "".join(m) != last and last not in m
            ]
    write_json(folder / "tokenizer.json", tokenizer)
    write_json(folder / "tokenizer_config.json", {"eos_token": "<|im_end|>"})
    return folder


@pytest.mark.parametrize("tied", [True, False])
def test_a_reranker_ranks(tied, tmp_path):
    folder = reranker(tmp_path / "Qwen3-Reranker-0.6B", tied=tied)
    model = open_model(folder)
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    rows = [vocabulary["yes"], vocabulary["no"]]
    expected = qwen3_weights()["model.embed_tokens.weight"][rows] * (1 if tied else 2)
    head = model.tensors["cls.output.weight"]
    np.testing.assert_array_equal(head.read(), expected)
    np.testing.assert_array_equal(head.rows(1, 2), expected[1:])
    assert "output.weight" not in model.tensors
    assert model.get("qwen3.pooling_type") == 4
    assert model.get("qwen3.classifier.output_labels") == ["yes", "no"]
    assert "<Query>: {query}" in model.get("tokenizer.chat_template.rerank")
    types = {t.name: t.type for t in make_plan(model, Options(type="q8_0", rotate="fused")).tensors}
    assert types["cls.output.weight"] == "F32"


def test_a_card_tells_a_reranker_too(tmp_path):
    folder = reranker(tmp_path / "m", tied=True)
    assert "cls.output.weight" not in open_model(folder).tensors
    (folder / "README.md").write_text("# Qwen3-Reranker-0.6B\n")
    assert "cls.output.weight" in open_model(folder).tensors


def test_a_reranker_without_its_answers(tmp_path):
    folder = write_folder(tmp_path / "my-qwen3-reranker", qwen3_weights(), config=QWEN3)
    with pytest.raises(FileFormatError, match="without the token 'yes'"):
        open_model(folder)
