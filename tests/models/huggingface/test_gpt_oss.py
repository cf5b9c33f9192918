"""gpt-oss as released: the bits of its MXFP4 experts reach the file as they are."""

from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from tests.models.huggingface.bpe import train_byte_level
from tests.models.huggingface.folders import write_folder, write_json
from tqgguf.cli import app
from tqgguf.errors import FileFormatError
from tqgguf.models import open_model

SIZE = 2048
EXPERTS = "model.layers.0.mlp.experts."
LEVELS = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)


def gpt_oss(path: Path) -> Path:
    """A folder as released: experts in MXFP4 blocks, whose bits must survive."""
    rng = np.random.default_rng(0)
    norms = ("input_layernorm", "post_attention_layernorm")
    weights = {"model.embed_tokens.weight": (SIZE, 32), "lm_head.weight": (SIZE, 32)}
    weights |= {"model.norm.weight": (32,)}
    prefix = "model.layers.0."
    weights |= {f"{prefix}{norm}.weight": (32,) for norm in norms}
    for part, size in (("q", 32), ("k", 16), ("v", 16), ("o", 32)):
        weights[f"{prefix}self_attn.{part}_proj.weight"] = (size, 32)
        weights[f"{prefix}self_attn.{part}_proj.bias"] = (size,)
    weights[f"{prefix}self_attn.sinks"] = (4,)
    weights |= {f"{prefix}mlp.router.weight": (3, 32), f"{prefix}mlp.router.bias": (3,)}
    experts = f"{prefix}mlp.experts."
    weights |= {f"{experts}gate_up_proj_bias": (3, 128), f"{experts}down_proj_bias": (3, 32)}
    values = {n: rng.standard_normal(shape).astype(np.float32) for n, shape in weights.items()}
    for part, rows, blocks in (("gate_up", 128, 1), ("down", 32, 2)):
        values[f"{experts}{part}_proj_blocks"] = rng.integers(
            0, 256, (3, rows, blocks, 16), np.uint8
        )
        values[f"{experts}{part}_proj_scales"] = rng.integers(100, 140, (3, rows, blocks), np.uint8)
    config = {
        "architectures": ["GptOssForCausalLM"],
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_local_experts": 3,
        "num_experts_per_tok": 2,
        "sliding_window": 8,
        "tie_word_embeddings": False,
        "quantization_config": {"quant_method": "mxfp4"},
    }
    folder = write_folder(path, values, config=config)
    (folder / "tokenizer.model").unlink()
    train_byte_level("qwen2", SIZE).save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {"eos_token": "<|im_end|>"})
    return folder


def decoded(folder: Path, part: str) -> np.ndarray:
    """Hugging Face's blocks by the definition: neighbours in a byte, a sign and three bits each."""
    stored = load_file(folder / "model.safetensors")
    blocks, scales = (stored[f"{EXPERTS}{part}_proj_{kind}"] for kind in ("blocks", "scales"))
    codes = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*blocks.shape[:-1], 32)
    values = np.where(codes & 8, -1, 1) * LEVELS[codes & 7]
    weights = values * 2.0 ** (scales.astype(np.float64) - 127)[..., None]
    return weights.reshape(*blocks.shape[:2], -1).astype(np.float32)


def test_blocks_mean_the_same_in_ggmls_order(tmp_path):
    folder = gpt_oss(tmp_path)
    tensors = open_model(folder).tensors
    fused = decoded(folder, "gate_up")
    for name, expected in (
        ("gate", fused[:, 0::2]),
        ("up", fused[:, 1::2]),
        ("down", decoded(folder, "down")),
    ):
        tensor = tensors[f"blk.0.ffn_{name}_exps.weight"]
        assert tensor.type == "MXFP4"
        np.testing.assert_array_equal(tensor.read(), expected)
        whole = expected.reshape(-1, expected.shape[-1])
        np.testing.assert_array_equal(tensor.rows(5, 40), whole[5:40])


@pytest.mark.parametrize("type", ["tq-q4", "q8_0"])
def test_experts_are_copied_and_the_rest_is_quantized(type, tmp_path):
    folder, path = gpt_oss(tmp_path / "m"), tmp_path / "o.gguf"
    arguments = ["quantize", str(folder), "-t", type, "--effort", "fast", "-q", "-o", str(path)]
    result = CliRunner().invoke(app, [*arguments, "--rotate", "none"])
    assert result.exit_code == 0, result.output
    written = {t.name: t for t in GGUFReader(path).tensors}
    for name, tensor in open_model(folder).tensors.items():
        if name.endswith("_exps.weight"):
            assert written[name].tensor_type.name == "MXFP4"
            stored = tensor.stored(0, tensor.n_rows)
            np.testing.assert_array_equal(written[name].data.reshape(stored.shape), stored)
    assert written["blk.0.attn_q.weight"].tensor_type.name in ("Q8_0", "Q4_0", "IQ4_NL", "Q5_1")


def test_experts_are_not_rotated_by_default(tmp_path):
    folder, path = gpt_oss(tmp_path / "m"), tmp_path / "o.gguf"
    arguments = ["quantize", str(folder), "--effort", "fast", "-o", str(path)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    types = {t.name: t.tensor_type.name for t in GGUFReader(path).tensors}
    assert types["blk.0.ffn_down_exps.weight"] == "MXFP4"
    path.unlink()
    result = CliRunner().invoke(app, [*arguments, "--rotate", "fused"])
    assert result.exit_code == 1
    assert "a rotation would round its MXFP4 weights again; use --rotate none" in result.output


def test_experts_without_their_scales_are_one_line(tmp_path):
    folder = gpt_oss(tmp_path)
    broken = {f"{EXPERTS}down_proj_scales": np.zeros((3, 32, 1), np.uint8)}
    save_file(load_file(folder / "model.safetensors") | broken, folder / "model.safetensors")
    with pytest.raises(FileFormatError, match="expected 16 bytes for each scale"):
        open_model(folder)
