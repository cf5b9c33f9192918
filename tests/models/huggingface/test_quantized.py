"""Folders that other quantizers wrote: decoded to exactly what their codes stand for, or named."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.models.huggingface.folders import LLAMA, llama_weights, write_folder, write_json
from tests.models.huggingface.test_mutations import MUTATIONS
from tqgguf.errors import FileFormatError, TqggufError, UnsupportedModelError
from tqgguf.ggml import dequantize
from tqgguf.models import open_model
from tqgguf.models.huggingface.changes import interleaved, stacked
from tqgguf.models.huggingface.folder import Config
from tqgguf.models.huggingface.quantized.fp4 import _fp4
from tqgguf.models.huggingface.quantized.parts import Parts
from tqgguf.models.huggingface.stored import Stored

DOWN = "model.layers.0.mlp.down_proj"
N_OUT, N_IN = 32, 48  # of down_proj in the small Llama model
METHOD = "quantization_config"


def packed(numbers: np.ndarray, bits: int, axis: int) -> np.ndarray:
    """Small numbers put into 32-bit words one by one, lowest first."""
    per_word = 32 // bits
    numbers = np.moveaxis(numbers, axis, 0)
    words = np.zeros((-(-len(numbers) // per_word), *numbers.shape[1:]), np.uint32)
    for i, line in enumerate(numbers):
        words[i // per_word] |= line.astype(np.uint32) << np.uint32(bits * (i % per_word))
    return np.moveaxis(words, 0, axis).view(np.int32).copy()


class Codes:
    """Random codes, zeros and scales of down_proj: w = (q - zero) * scale."""

    def __init__(self, bits: int, group: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.bits, self.n_groups = bits, N_IN // group
        self.q = rng.integers(0, 1 << bits, (N_OUT, N_IN))
        self.zero = rng.integers(0, 1 << bits, (N_OUT, self.n_groups))
        self.scale = rng.uniform(0.01, 0.1, (N_OUT, self.n_groups)).astype(np.float16)
        self.groups = np.arange(N_IN) // group

    def weights(self) -> np.ndarray:
        scale = self.scale.astype(np.float32)[:, self.groups]
        return ((self.q - self.zero[:, self.groups]) * scale).astype(np.float32)


def folder_with(path: Path, parts: dict[str, Any], **config: Any) -> Path:
    """A folder whose first down_proj is stored as these parts."""
    weights: dict[str, Any] = llama_weights()
    del weights[f"{DOWN}.weight"]
    weights |= {f"{DOWN}.{end}": np.ascontiguousarray(part) for end, part in parts.items()}
    return write_folder(path, weights, config=config)


def assert_reads(folder: Path, expected: np.ndarray) -> None:
    """The matrix is these weights, whole and in pieces, and its decoding is noted."""
    model = open_model(folder)
    tensor = model.tensors["blk.0.ffn_down.weight"]
    np.testing.assert_array_equal(tensor.read(), expected)
    for start, stop in [(0, 1), (5, 19), (31, 32), (7, 7)]:
        np.testing.assert_array_equal(tensor.rows(start, stop), expected[start:stop])
    assert ["quantized already" in note for note in model.notes] == [True]
    assert list(model.tensors) == list(open_model(write_folder(folder.parent / "plain")).tensors)


def gptq(codes: Codes, offset: int, *, listed: bool = True) -> dict[str, np.ndarray]:
    stored_zero = (codes.zero - offset) % (1 << codes.bits)
    parts = {
        "qweight": packed(codes.q.T, codes.bits, 0),
        "qzeros": packed(stored_zero.T, codes.bits, 1),
        "scales": codes.scale.T,
    }
    return parts | ({"g_idx": codes.groups.astype(np.int32)} if listed else {})


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("form", "offset"), [("gptq", 1), (None, 1), ("gptq_v2", 0)])
def test_gptq(bits, form, offset, tmp_path):
    codes = Codes(bits, 16)
    method = {"quant_method": "gptq", "bits": bits, "checkpoint_format": form}
    folder = folder_with(tmp_path / "m", gptq(codes, offset), **{METHOD: method})
    assert_reads(folder, codes.weights())


def test_gptq_with_activations_in_order_and_settings_of_its_own(tmp_path):
    codes = Codes(4, 16)
    codes.groups = np.random.default_rng(3).permutation(codes.groups)
    folder = folder_with(tmp_path / "m", gptq(codes, 0))
    write_json(folder / "quantize_config.json", {"bits": 4, "checkpoint_format": "gptq_v2"})
    assert_reads(folder, codes.weights())


def test_gptq_without_listed_groups(tmp_path):
    codes = Codes(4, 24)
    assert_reads(folder_with(tmp_path / "m", gptq(codes, 1, listed=False)), codes.weights())


def awq(codes: Codes) -> dict[str, np.ndarray]:
    """Eight columns to a word, in the order 0 2 4 6 1 3 5 7."""
    order = np.arange(N_OUT).reshape(-1, 8)[:, [0, 2, 4, 6, 1, 3, 5, 7]].reshape(-1)
    return {
        "qweight": packed(codes.q.T[:, order], 4, 1),
        "qzeros": packed(codes.zero.T[:, order], 4, 1),
        "scales": codes.scale.T,
    }


def test_awq(tmp_path):
    codes = Codes(4, 16)
    method = {"quant_method": "awq", "bits": 4, "version": "gemm"}
    assert_reads(folder_with(tmp_path / "m", awq(codes), **{METHOD: method}), codes.weights())


def test_awq_in_another_layout_is_named(tmp_path):
    method = {"quant_method": "awq", "bits": 4, "version": "gemv"}
    folder = folder_with(tmp_path / "m", awq(Codes(4, 16)), **{METHOD: method})
    with pytest.raises(UnsupportedModelError, match="AWQ weights in the layout 'gemv'"):
        open_model(folder)


def compressed(codes: Codes, *, zero: bool) -> dict[str, np.ndarray]:
    parts = {
        "weight_packed": packed(codes.q, codes.bits, 1),
        "weight_scale": codes.scale,
        "weight_shape": np.array([N_OUT, N_IN]),
    }
    return parts | ({"weight_zero_point": packed(codes.zero, codes.bits, 0)} if zero else {})


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [16, 48])
@pytest.mark.parametrize("zero", [False, True])
def test_compressed_tensors_packed(bits, group, zero, tmp_path):
    codes = Codes(bits, group)
    if not zero:
        codes.zero[:] = 1 << (bits - 1)
    method = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    folder = folder_with(tmp_path / "m", compressed(codes, zero=zero), **{METHOD: method})
    assert_reads(folder, codes.weights())


def test_compressed_tensors_packed_with_listed_groups(tmp_path):
    codes = Codes(4, 16)
    codes.groups = np.random.default_rng(3).permutation(codes.groups)
    parts = compressed(codes, zero=True) | {"weight_g_idx": codes.groups.astype(np.int32)}
    assert_reads(folder_with(tmp_path / "m", parts), codes.weights())


@pytest.mark.parametrize("scale", [(N_OUT, 1), (N_OUT,), (1,), (), (N_OUT, 3)])
@pytest.mark.parametrize("zero", [False, True])
def test_8_bit_integers(scale, zero, tmp_path):
    rng = np.random.default_rng(0)
    q = rng.integers(-128, 128, (N_OUT, N_IN)).astype(np.int8)
    scales = rng.uniform(0.01, 0.1, scale).astype(np.float32)
    zeros = rng.integers(-9, 9, scale).astype(np.int8)
    parts = {"weight": q, "weight_scale": scales}
    parts |= {"weight_zero_point": zeros} if zero else {}
    wide = [np.asarray(v, np.float32).reshape(scale or (1,)) for v in (scales, zeros * zero)]
    wide = [v[:, None] if v.ndim == 1 else v for v in wide]
    wide = [np.repeat(v, N_IN // v.shape[1], axis=1) for v in wide]
    method = {"quant_method": "compressed-tensors", "format": "int-quantized"}
    folder = folder_with(tmp_path / "m", parts, **{METHOD: method})
    assert_reads(folder, (q - wide[1]) * wide[0])


@pytest.mark.parametrize("dtype", [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
def test_both_kinds_of_fp8(dtype, tmp_path):
    values = np.random.default_rng(0).standard_normal((N_OUT, N_IN)).astype(dtype)
    parts = {"weight": values, "weight_scale": np.full((N_OUT, 1), 0.5, np.float32)}
    parts |= {"input_scale": np.ones(1, np.float32)}
    assert_reads(folder_with(tmp_path / "m", parts), values.astype(np.float32) / 2)


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"scales": np.ones((3, 31), np.float16)}, "expected 2, 4 or 8 bits"),
        ({"qzeros": np.zeros((3, 3), np.int32)}, "expected 2, 4 or 8 bits"),
        ({"qweight": np.zeros((6, 5), np.int32)}, r"codes of shape \(6, 5\) do not fit"),
        ({"qweight": np.zeros(6, np.int32)}, "expected a matrix"),
        ({"g_idx": np.full(N_IN, 3, np.int32)}, "one of 3 groups"),
        ({"g_idx": np.zeros(4, np.int32)}, "one of 3 groups"),
        ({"qweight": np.zeros((5, N_OUT), np.int32)}, "one of 3 groups"),
    ],
)
def test_parts_that_do_not_fit_are_one_line(change, fact, tmp_path):
    folder = folder_with(tmp_path, gptq(Codes(4, 16), 1) | change)
    with pytest.raises((FileFormatError, UnsupportedModelError), match=fact) as caught:
        open_model(folder)
    assert "\n" not in str(caught.value)


E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def fp4(n_out: int, n_in: int, form: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Parts of a matrix of 4-bit floats, and its weights."""
    rng = np.random.default_rng(7)
    group, codes = 32 if form == "MXFP4" else 16, rng.integers(0, 16, (n_out, n_in), np.uint8)
    nibbles = codes[:, 0::2] | codes[:, 1::2] << 4
    if form == "MXFP4":
        exponent = rng.integers(110, 130, (n_out, n_in // group), np.uint8)
        scale = np.ldexp(np.float32(1), exponent.astype(np.int32) - 127)
        parts, factor = {"weight_packed": nibbles, "weight_scale": exponent}, np.float32(1)
    else:
        stored = rng.uniform(0.1, 300, (n_out, n_in // group)).astype(ml_dtypes.float8_e4m3fn)
        scale, given = stored.astype(np.float32), np.array([3.7e-4], np.float32)
        if form == "ModelOpt":
            factor = given[0]
            parts = {"weight": nibbles, "weight_scale": stored, "weight_scale_2": given}
        else:
            factor, given = np.float32(1) / np.float32(2900), np.array([2900], np.float32)
            parts = {"weight_packed": nibbles, "weight_scale": stored}
            parts["weight_global_scale"] = given
    return parts, E2M1[codes] * np.repeat(scale, group, axis=1) * factor


@pytest.mark.parametrize("form", ["ModelOpt", "compressed-tensors"])
def test_4_bit_floats(form, tmp_path):
    parts, weights = fp4(N_OUT, N_IN, form)
    assert_reads(folder_with(tmp_path / "m", parts), weights)


@pytest.mark.parametrize("form", ["ModelOpt", "compressed-tensors", "MXFP4"])
def test_4_bit_floats_are_kept_as_ggmls_blocks_in_any_order_of_rows(form):
    parts, weights = fp4(64, 128, form)
    names = {"uint8": "U8", "float32": "F32", "float8_e4m3fn": "F8_E4M3"}
    stored = {f".{end}": Stored(end, names[x.dtype.name], x) for end, x in parts.items()}
    settings = Config(Path("config.json"), {})
    found = _fp4(Parts("w.weight", stored, settings))
    packed, order = found.packed(), np.arange(64).reshape(2, 2, 16).swapaxes(1, 2).reshape(-1)
    whole = replace(
        stored[next(iter(stored))], decoded=found.rows(), shape=(64, 128), packed=packed
    )
    for tensor, expected in [
        (whole.tensor(), weights),
        (interleaved(whole.tensor(), 2), weights[order]),
        (stacked([whole.tensor(), whole.tensor()]), np.concatenate([weights, weights])),
    ]:
        n_rows = tensor.n_rows
        assert tensor.type == ("MXFP4" if form == "MXFP4" else "NVFP4")
        np.testing.assert_array_equal(tensor.rows(0, n_rows), expected)
        scales = np.float32(1) if tensor.scales is None else tensor.scales[0]
        blocks = dequantize(tensor.stored(0, n_rows), tensor.type) * scales
        np.testing.assert_array_equal(blocks, expected)


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"weight_scale": np.zeros((N_OUT, 3), np.float16)}, "expected one for each 16 or 32"),
        ({"weight_scale_2": np.zeros(1, np.float32)}, "expected one positive number"),
    ],
)
def test_4_bit_floats_that_do_not_fit_are_one_line(change, fact, tmp_path):
    folder = folder_with(tmp_path, fp4(N_OUT, N_IN, "ModelOpt")[0] | change)
    with pytest.raises(FileFormatError, match=fact):
        open_model(folder)


Z8, Z16, Z32 = (np.zeros((N_OUT, 6), dtype) for dtype in (np.uint8, np.float16, np.uint32))
FOREIGN = {
    "MLX": {"weight": Z32, "scales": Z16, "biases": Z16},
    "bitsandbytes, 4 bits": {"weight": Z8, "weight.absmax": Z16, "weight.quant_map": Z16},
    "bitsandbytes, 8 bits": {"weight": Z8.view(np.int8), "SCB": Z16},
    "HQQ": {"W_q": Z8, "scale": Z16, "zero": Z16},
}


@pytest.mark.parametrize("title", FOREIGN)
def test_what_cannot_be_undone_is_named_with_the_cure(title, tmp_path):
    folder = folder_with(tmp_path, FOREIGN[title])
    (folder / "README.md").write_text("---\nbase_model: org/original\n---\nA model.\n")
    expected = f"quantized by {title.strip()}.*give the folder of the model .* org/original"
    with pytest.raises(UnsupportedModelError, match=expected):
        open_model(folder)


@pytest.mark.parametrize(
    ("method", "named"),
    [
        ({"quant_method": "quanto"}, "quantized by quanto"),
        ({"quant_method": "gptq"}, "quantized by gptq"),
        (
            {"quant_method": "compressed-tensors", "sparsity_config": {"format": "marlin-24"}},
            "sparse: marlin-24",
        ),
        (
            {"quant_method": "compressed-tensors", "transform_config": {"config_groups": {"u": 1}}},
            "transforms of its own",
        ),
    ],
)
def test_a_method_whose_tensors_look_plain_is_named(method, named, tmp_path):
    folder = write_folder(tmp_path, config={**LLAMA, METHOD: method})
    assert json.loads((folder / "config.json").read_text())[METHOD] == method
    with pytest.raises(UnsupportedModelError, match=named):
        open_model(folder)


def some_parts(rng: random.Random) -> dict[str, np.ndarray]:
    """The parts of a matrix in one of the layouts."""
    codes = Codes(rng.choice([2, 4, 8]), 16)
    int8 = {"weight": np.zeros((N_OUT, N_IN), np.int8), "weight_scale": np.ones((N_OUT, 3))}
    fp8 = {"weight": np.zeros((N_OUT, N_IN), ml_dtypes.float8_e4m3fn)}
    scale = {"weight_scale": np.ones((N_OUT, 1), np.float32)}
    layouts = (gptq(codes, 1), awq(Codes(4, 16)), compressed(codes, zero=True), int8, fp8 | scale)
    return rng.choice(layouts)


def changed(rng: random.Random, part: np.ndarray) -> np.ndarray:
    """A part of another shape or type."""
    match rng.randrange(4):
        case 0:
            shape = [max(0, size + rng.choice([-1, 0, 1, 5])) for size in part.shape]
            return np.zeros(shape, part.dtype)
        case 1:
            return part.reshape(-1)
        case 2:
            return part.astype(np.int32 if part.dtype == np.float32 else np.float32)
    return np.zeros((), part.dtype)


def test_changed_parts_give_weights_or_one_line(tmp_path):
    for seed in range(MUTATIONS):
        rng = random.Random(seed)
        parts = some_parts(rng)
        end = rng.choice(list(parts))
        if rng.random() < 0.25:
            del parts[end]
        else:
            parts[end] = changed(rng, parts[end])
        try:
            model = open_model(folder_with(tmp_path, parts))
            for tensor in model.tensors.values():
                tensor.read()
        except TqggufError as error:
            assert "\n" not in str(error)  # noqa: PT017 - either end is right
