"""Reading weights: dtypes, FP8 scales, stacked experts, wrappers of multimodal models; lazily."""

import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.llama import logprobs
from tests.models.huggingface.folders import LLAMA, llama_weights, write_folder, write_json
from tests.models.huggingface.test_byte_level_bpe import converted
from tqgguf.errors import FileFormatError, UnsupportedModelError
from tqgguf.models import open_model

FP8 = ml_dtypes.float8_e4m3fn
DOWN = "model.layers.0.mlp.down_proj.weight"  # (32, 48)
TOKENS = [1, 5, 300, 1400, 77, 2047, 12, 12, 900]
MOE = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "head_dim": 8,
    "num_experts": 3,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "norm_topk_prob": True,
}


def with_fp8(folder: Path, scale: np.ndarray, suffix: str, block: Any = None) -> np.ndarray:
    """Store one matrix in FP8 with a scale; the FP8 values as float32."""
    weights: dict[str, np.ndarray] = llama_weights()
    codes = weights[DOWN].astype(FP8)
    weights |= {DOWN: codes, DOWN + suffix: scale}
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": block}}
    write_folder(folder, weights, config=config)
    return codes.astype(np.float32)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, FP8])
def test_every_dtype_is_read_as_numpy_reads_it(dtype, tmp_path):
    weights = {name: values.astype(dtype) for name, values in llama_weights().items()}
    model = open_model(write_folder(tmp_path, weights))
    expected = weights[DOWN].astype(np.float32)
    np.testing.assert_array_equal(model.tensors["blk.0.ffn_down.weight"].read(), expected)
    norm = model.tensors["output_norm.weight"]
    assert norm.type == "F32"
    np.testing.assert_array_equal(norm.read(), weights["model.norm.weight"].astype(np.float32))


@pytest.mark.parametrize("suffix", ["_scale_inv", "_scale"])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (32,), (32, 1)])
def test_fp8_with_one_scale_or_one_a_row(shape, suffix, tmp_path):
    scale = np.random.default_rng(0).uniform(0.5, 2, shape).astype(np.float32)
    codes = with_fp8(tmp_path, scale, suffix)
    ours = open_model(tmp_path).tensors["blk.0.ffn_down.weight"].read()
    np.testing.assert_array_equal(ours, codes * scale.reshape(-1, 1))


@pytest.mark.parametrize("block", [(8, 16), (16, 20), (7, 5)])
def test_fp8_with_one_scale_a_block(block, tmp_path):
    grid = (-(-32 // block[0]), -(-48 // block[1]))
    scale = np.random.default_rng(0).uniform(0.5, 2, grid).astype(np.float32)
    codes = with_fp8(tmp_path, scale, "_scale_inv", list(block))
    whole = np.kron(scale, np.ones(block, np.float32))[:32, :48]
    tensor = open_model(tmp_path).tensors["blk.0.ffn_down.weight"]
    np.testing.assert_array_equal(tensor.read(), codes * whole)
    np.testing.assert_array_equal(tensor.rows(5, 19), (codes * whole)[5:19])


def test_an_fp8_folder_runs_as_its_float32_values(tmp_path):
    scale = np.array(0.75, np.float32)
    values = with_fp8(tmp_path / "fp8", scale, "_scale_inv") * scale
    write_folder(tmp_path / "plain", {**llama_weights(), DOWN: values})
    ours, plain = (logprobs(converted(tmp_path / name), TOKENS) for name in ("fp8", "plain"))
    np.testing.assert_array_equal(ours, plain)


@pytest.mark.parametrize("shape", [(2,), (2, 3), (32, 48)])
def test_a_scale_that_does_not_fit_is_one_line(shape, tmp_path):
    with_fp8(tmp_path, np.ones(shape, np.float32), "_scale_inv", [8, 16])
    with pytest.raises(FileFormatError, match=r"down_proj.weight: has shape .* and a scale of"):
        open_model(tmp_path)


@pytest.mark.parametrize("block", [[0, 16], [8], "8", [8, 16.5]])
def test_a_wrong_block_size_is_one_line(block, tmp_path):
    with_fp8(tmp_path, np.ones((4, 3), np.float32), "_scale_inv", block)
    with pytest.raises(FileFormatError, match=r"weight_block_size is .* expected two sizes"):
        open_model(tmp_path)


def moe_weights() -> dict[str, np.ndarray]:
    """A small Qwen3-MoE model, its experts one by one as in the released files."""
    rng = np.random.default_rng(1)
    weights = {n: w for n, w in llama_weights().items() if ".mlp." not in n}
    for i in range(2):
        prefix = f"model.layers.{i}."
        for norm in ("q_norm", "k_norm"):
            weights[f"{prefix}self_attn.{norm}.weight"] = np.ones(8, np.float32)
        weights[f"{prefix}mlp.gate.weight"] = rng.standard_normal((3, 32), np.float32)
        for expert in range(3):
            for part, shape in (("gate", (16, 32)), ("up", (16, 32)), ("down", (32, 16))):
                name = f"{prefix}mlp.experts.{expert}.{part}_proj.weight"
                weights[name] = rng.standard_normal(shape, np.float32)
    return weights


def fused(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same weights with the experts of a layer in two tensors, as transformers 5 holds them."""
    result = {n: w for n, w in weights.items() if ".experts." not in n}
    for i in range(2):
        prefix = f"model.layers.{i}.mlp.experts."
        parts = {
            part: np.stack([weights[f"{prefix}{e}.{part}_proj.weight"] for e in range(3)])
            for part in ("gate", "up", "down")
        }
        result[f"{prefix}gate_up_proj"] = np.concatenate([parts["gate"], parts["up"]], axis=1)
        result[f"{prefix}down_proj"] = parts["down"]
    return result


def test_experts_are_stacked(tmp_path):
    weights = moe_weights()
    model = open_model(write_folder(tmp_path, weights, config=MOE))
    tensor = model.tensors["blk.1.ffn_down_exps.weight"]
    assert tensor.shape == (3, 32, 16)
    for expert in range(3):
        name = f"model.layers.1.mlp.experts.{expert}.down_proj.weight"
        np.testing.assert_array_equal(tensor.read()[expert], weights[name])
    whole = tensor.read().reshape(-1, 16)
    for start, stop in [(0, 1), (31, 33), (10, 90), (64, 96), (96, 96)]:
        np.testing.assert_array_equal(tensor.rows(start, stop), whole[start:stop])


def test_fused_experts_that_lie_turned_are_the_same_model(tmp_path):
    """Qwen3-VL's released files hold them turned around; what transformers 5 saves does not."""
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    config = {**MOE, "architectures": ["Qwen3VLMoeForConditionalGeneration"]}
    config["rope_parameters"] = rope
    plain = fused(moe_weights())
    turned = {
        n: np.ascontiguousarray(w.swapaxes(1, 2)) if ".experts." in n else w
        for n, w in plain.items()
    }
    apart = open_model(write_folder(tmp_path / "a", moe_weights(), config=config)).tensors
    for name, weights in (("b", plain), ("c", turned)):
        tensors = open_model(write_folder(tmp_path / name, weights, config=config)).tensors
        assert tensors.keys() == apart.keys()
        for key, tensor in tensors.items():
            np.testing.assert_array_equal(tensor.read(), apart[key].read())


def test_fused_experts_are_the_same_model(tmp_path):
    one_by_one = open_model(write_folder(tmp_path / "a", moe_weights(), config=MOE))
    together = open_model(write_folder(tmp_path / "b", fused(moe_weights()), config=MOE))
    assert list(one_by_one.tensors) == list(together.tensors)
    for name, tensor in one_by_one.tensors.items():
        other = together.tensors[name]
        np.testing.assert_array_equal(other.read(), tensor.read())
        middle = slice(tensor.n_rows // 3, tensor.n_rows)
        np.testing.assert_array_equal(
            other.rows(middle.start, middle.stop), tensor.rows(middle.start, middle.stop)
        )


def test_experts_with_gaps_or_of_different_kinds_are_one_line(tmp_path):
    weights = moe_weights()
    name = "model.layers.0.mlp.experts.1.up_proj.weight"
    for change, fact in (
        ({}, "experts .* have gaps"),
        ({name: weights[name].astype(np.float16)}, "experts must be alike"),
        ({name: np.ones((4, 4), np.float32)}, "experts must be alike"),
    ):
        changed = {**{n: w for n, w in weights.items() if n != name}, **change}
        with pytest.raises(FileFormatError, match=fact):
            open_model(write_folder(tmp_path, changed, config=MOE))


def test_a_router_that_does_not_normalise_is_not_what_llama_cpp_computes(tmp_path):
    for value in (False, ...):
        config = {**MOE, "norm_topk_prob": value}
        folder = write_folder(tmp_path, moe_weights(), config=config)
        with pytest.raises(UnsupportedModelError, match="norm_topk_prob is"):
            open_model(folder)


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model."])
def test_the_language_model_of_a_multimodal_one_is_found(prefix, tmp_path):
    """Gemma 3 with vision: its tensors are wrapped, its values in text_config, with defaults."""
    weights = gemma3_weights()
    text = {k: v for k, v in LLAMA.items() if k not in ("architectures", "rope_theta")}
    text |= {"head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 8, "hidden_act": None}
    text["num_hidden_layers"] = 1
    config = {"architectures": ["Gemma3ForCausalLM"], **text}
    plain = open_model(write_folder(tmp_path / "plain", weights, config=config))
    wrapped = {n.replace("model.", prefix, 1): w for n, w in weights.items()}
    wrapped["vision_tower.vision_model.embeddings.weight"] = np.ones(4, np.float32)
    wrapped["multi_modal_projector.mm_input_projection_weight"] = np.ones(4, np.float32)
    folder = write_folder(tmp_path / "wrapped", wrapped)
    outer = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text}
    write_json(folder / "config.json", outer)
    other = open_model(folder)
    assert list(other.tensors) == list(plain.tensors)
    assert plain.notes == ()
    (note,) = other.notes
    assert "left out 2 tensors: the vision tower, which llama.cpp reads from a file" in note
    assert other.get("gemma3.attention.sliding_window") == 4
    assert other.get("gemma3.rope.freq_base_swa") == 10_000
    for name, tensor in plain.tensors.items():
        np.testing.assert_array_equal(other.tensors[name].read(), tensor.read())


@pytest.mark.parametrize(("outer", "inner"), [(True, False), (False, True)])
def test_a_head_that_two_places_call_tied_and_not_is_what_was_saved(outer, inner, tmp_path):
    config = {"text_config": {"tie_word_embeddings": inner}, "tie_word_embeddings": outer}
    assert "output.weight" not in open_model(write_folder(tmp_path, config=config)).tensors
    head = {"lm_head.weight": np.ones((2048, 32), np.float32)}
    folder = write_folder(tmp_path, llama_weights() | head, config=config)
    assert open_model(folder).tensors["output.weight"].read().min() == 1


@pytest.mark.parametrize("name", ["mtp.fc.weight", "model.layers.2.eh_proj.weight"])
def test_layers_that_predict_further_tokens_are_left_out_with_a_note(name, tmp_path):
    weights = llama_weights() | {name: np.ones((4, 4), np.float32)}
    folder = write_folder(tmp_path, weights, config={"num_nextn_predict_layers": 1})
    model = open_model(folder)
    assert list(model.tensors) == list(open_model(write_folder(tmp_path / "plain")).tensors)
    assert ["left out 1 tensors: the layers that predict further" in n for n in model.notes] == [
        True
    ]


def gemma3_weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    weights = {n: w for n, w in llama_weights().items() if ".layers.1." not in n}
    for norm in ("pre_feedforward_layernorm", "post_feedforward_layernorm"):
        weights[f"model.layers.0.{norm}.weight"] = rng.standard_normal(32, np.float32)
    for norm in ("q_norm", "k_norm"):
        weights[f"model.layers.0.self_attn.{norm}.weight"] = rng.standard_normal(8, np.float32)
    return weights


def test_gemmas_norms_are_shifted_by_one(tmp_path):
    weights = gemma3_weights()
    config = {"architectures": ["Gemma3ForCausalLM"], "num_hidden_layers": 1, "hidden_act": None}
    config |= {"head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 8}
    model = open_model(write_folder(tmp_path, weights, config=config))
    for ours, theirs in (
        ("output_norm", "norm"),
        ("blk.0.attn_q_norm", "layers.0.self_attn.q_norm"),
    ):
        expected = weights[f"model.{theirs}.weight"] + 1
        np.testing.assert_array_equal(model.tensors[f"{ours}.weight"].read(), expected)
    np.testing.assert_array_equal(
        model.tensors["token_embd.weight"].read(), weights["model.embed_tokens.weight"]
    )


def test_opening_reads_no_weights_and_rows_come_in_pieces(tmp_path):
    wide = {"intermediate_size": 200_000, "num_hidden_layers": 1}  # three matrices of 26 MB
    folder = write_folder(tmp_path, config=wide)
    tracemalloc.start()
    model = open_model(folder)
    up = model.tensors["blk.0.ffn_up.weight"].rows(1000, 2000)
    down = model.tensors["blk.0.ffn_down.weight"].rows(3, 7)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert up.shape == (1000, 32)
    assert down.shape == (4, 200_000)
    assert peak < 12 << 20
