"""Scales of whole matrices, beside NVFP4's blocks: real llama.cpp multiplies by them."""

import ggml
import llama
import numpy as np
import pytest
from tiny_models import NOVELS, TINY, write_tensors, write_tiny

from tqgguf import Options, convert, open_model
from tqgguf.errors import FileFormatError
from tqgguf.models import scale_name

TOKENS = np.random.default_rng(5).integers(3, 2048, 60).tolist()
FEW = ("llama", "qwen3moe", "qwen35moe", "gpt2")
PLAIN = {"rotate": "none", "effort": "fast"}


def rows(names):
    return [pytest.param(n, marks=() if n in FEW else pytest.mark.slow) for n in names]


@pytest.mark.parametrize("name", rows(TINY))
def test_llama_cpp_multiplies_by_every_scale(tmp_path, name):
    own = "exps" in TINY[name].layer or name == "qwen"
    sizes = {} if own else {"F": 128}  # so that ffn_down's rows fit
    source = write_tiny(tmp_path / "source.gguf", name, sizes=sizes, words=False)
    packed, decoded = tmp_path / "packed.gguf", tmp_path / "decoded.gguf"
    plan = convert(source, packed, Options(type="NVFP4", **PLAIN)).plan
    assert any(t.is_scaled for t in plan.tensors)
    convert(packed, decoded, Options(type="F32", allow_requantize=True, **PLAIN))
    want, got = llama.logprobs(decoded, TOKENS), llama.logprobs(packed, TOKENS)
    divergence = llama.kl_divergence(want, got) / want.std() ** 2
    assert np.median(divergence) < 0.002  # llama.cpp rounds activations to 8 bits
    assert divergence.mean() < 0.02  # which takes a few tokens to other experts


def unscaled(path, model):
    """The model as ggml would pack it: block scales alone, which end at 2^-9."""
    types = convert(model, path.with_name("as.gguf"), Options(type="NVFP4", **PLAIN)).plan.tensors
    tensors = {}
    for t in types:
        w = open_model(model).tensors[t.source].read()
        if t.is_scaled:
            flat = w.reshape(-1, w.shape[-1])
            w = ggml.dequantize(ggml.quantize(flat, "NVFP4"), "NVFP4").reshape(w.shape)
        tensors[t.name] = w
    return write_tensors(path, model, tensors)


@pytest.mark.slow
def test_divergence_is_at_most_nine_tenths_of_that_without_scales(tmp_path):
    text = (NOVELS.parent / "novels-eval.txt").read_text()[:2400]
    packed = tmp_path / "packed.gguf"
    rules = [("token_embd", "F16")]
    convert(NOVELS, packed, Options(type="NVFP4", tensor_type=rules, **PLAIN))
    plain = unscaled(tmp_path / "plain.gguf", NOVELS)
    want = llama.logprobs(NOVELS, text)
    ours, theirs = (llama.kl_divergence(want, llama.logprobs(p, text)) for p in (packed, plain))
    assert ours.mean() <= 0.9 * theirs.mean()


@pytest.mark.parametrize("name", ["llama", "qwen3moe"])
def test_packed_files_are_copied_bit_for_bit(tmp_path, name):
    source = write_tiny(tmp_path / "source.gguf", name)
    packed, again = tmp_path / "packed.gguf", tmp_path / "again.gguf"
    convert(source, packed, Options(type="NVFP4", **PLAIN))
    plan = convert(packed, again, Options(type="NVFP4", **PLAIN)).plan
    before, after = open_model(packed).tensors, open_model(again).tensors
    kept = [t.name for t in plan.tensors if t.is_scaled]
    assert kept
    for tensor in kept:
        n_rows = before[tensor].n_rows
        stored = (model[tensor].stored(0, n_rows) for model in (before, after))
        np.testing.assert_array_equal(*stored)
        np.testing.assert_array_equal(before[tensor].scales, after[tensor].scales)


def test_scales_that_do_not_fit_are_refused(tmp_path):
    source = write_tiny(tmp_path / "source.gguf", "llama")
    packed = tmp_path / "packed.gguf"
    convert(source, packed, Options(type="NVFP4", **PLAIN))
    data = bytearray(packed.read_bytes())
    name = scale_name("blk.0.attn_q.weight")
    value = open_model(packed).tensors["blk.0.attn_q.weight"].scales.tobytes()
    at = data.index(value, data.index(name.encode()))
    data[at : at + 4] = np.float32(np.nan).tobytes()
    packed.write_bytes(data)
    with pytest.raises(FileFormatError, match=r"\.scale has .* expected a finite number"):
        open_model(packed)
