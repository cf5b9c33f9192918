"""Real llama.cpp runs every block type, and reads from it what we say it holds."""

from pathlib import Path

import llama
import numpy as np
import pytest

from tqgguf import Options, convert
from tqgguf.formats import FORMATS

MODEL = Path(__file__).parents[1] / "data" / "novels-5m-f16.gguf"
TEXT = "The old man looked at the sea and said nothing"
ROLES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
NEW = ("IQ1_S", "IQ1_M", "TQ1_0", "TQ2_0", "Q1_0", "Q2_0", "NVFP4")
BLOCKS = [name for name, fmt in FORMATS.items() if fmt.block_size > 1 and name not in NEW]
MIXTURES = [NEW, *(tuple(BLOCKS[i : i + 7]) for i in range(0, len(BLOCKS), 7))]


@pytest.mark.slow
@pytest.mark.parametrize("types", MIXTURES, ids=" ".join)
def test_llama_cpp_computes_what_the_decoded_weights_do(tmp_path, types):
    rules = [(f"{role}.weight", type) for role, type in zip(ROLES, types, strict=False)]
    mixed, decoded = tmp_path / "mixed.gguf", tmp_path / "decoded.gguf"
    options = Options(type="F16", tensor_type=rules, rotate="none", effort="fast")
    found = {t.type for t in convert(MODEL, mixed, options).plan.tensors}
    assert found >= set(types)
    convert(
        mixed, decoded, Options(type="F32", rotate="none", effort="fast", allow_requantize=True)
    )
    want, got, original = (llama.logprobs(path, TEXT) for path in (decoded, mixed, MODEL))
    rounding = llama.kl_divergence(want, got).mean()  # of activations to 8 bits
    assert rounding < 0.02 * max(0.1, llama.kl_divergence(original, got).mean())
    assert np.isfinite(got).all()
