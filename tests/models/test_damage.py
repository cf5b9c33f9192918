"""NaN and Inf are found and named, whatever they made fail."""

import numpy as np
import pytest

from tests.cli.story import fails
from tests.tiny_models import write_tensors, write_tiny
from tqgguf.errors import PlanError, WeightError
from tqgguf.models import open_model
from tqgguf.models.damage import damage, naming_damage


def damaged(folder, name, value, architecture="llama"):
    source = write_tiny(folder / "whole.gguf", architecture)
    tensors = {n: t.read() for n, t in open_model(source).tensors.items()}
    tensors[name] = tensors[name].copy()
    tensors[name].flat[3] = value
    return write_tensors(folder / "damaged.gguf", source, tensors)


@pytest.mark.parametrize(
    ("mode", "effort"),
    [
        ("none", "fast"),
        ("none", "best"),
        ("values", "good"),
        ("fused", "fast"),
        ("tensor", "fast"),
        ("auto", "fast"),
        ("auto", "good"),
    ],
)
@pytest.mark.parametrize(
    ("name", "value"), [("blk.0.ffn_norm.weight", np.nan), ("blk.1.ffn_up.weight", np.inf)]
)
def test_every_mode_names_the_tensor_of_the_source(tmp_path, mode, effort, name, value):
    path = damaged(tmp_path, name, value)
    rest = ("-t", "q8_0", "--rotate", mode, "--effort", effort, "-o", tmp_path / "o.gguf", "-q")
    counts = "1 NaN and 0 infinite" if np.isnan(value) else "0 NaN and 1 infinite"
    fails("quantize", path, *rest, says=f"{name}: {counts} weights of")
    assert not (tmp_path / "o.gguf").exists()


@pytest.mark.parametrize("name", ["blk.0.ffn_norm.weight", "blk.1.ffn_up.weight"])
def test_what_only_measures_names_it_too(tmp_path, name):
    path = damaged(tmp_path, name, np.inf)
    whole = tmp_path / "whole.gguf"
    says = f"{name}: 0 NaN and 1 infinite weights of"
    fails("report", "mse", path, "--types", "q8_0", says=says)
    fails("compare", whole, path, says=f"{path}: {says}")
    fails("compare", path, whole, says=f"{path}: {says}")
    fails("plan", path, "-t", "q8_0", "--rotate", "auto", says=says)


def test_a_short_pass_that_computes_nan_names_it(tmp_path):
    """No matrix and no fold would come upon a bias."""
    path = damaged(tmp_path, "blk.1.attn_q.bias", np.nan, "qwen2")
    says = "blk.1.attn_q.bias: 1 NaN and 0 infinite weights of"
    fails("report", "mse", path, "--types", "q8_0", says=says)
    fails("plan", path, "-t", "q8_0", "--rotate", "none", says=says)


@pytest.mark.tools
def test_eval_names_it_where_llama_perplexity_cannot(tmp_path):
    path = damaged(tmp_path, "blk.1.attn_q.bias", np.nan, "qwen2")
    text = tmp_path / "text.txt"
    text.write_text("one two three " * 32)
    rest = ("--text", text, "--ctx", 16, "--chunks", 1, "--threads", 1, "-q")
    says = f"{path}: blk.1.attn_q.bias: 1 NaN and 0 infinite weights of"
    whole = tmp_path / "whole.gguf"
    fails("eval", path, whole, *rest, says=says)
    fails("eval", whole, path, *rest, says=says)


def test_what_has_another_reason_keeps_it(tmp_path):
    model = open_model(write_tiny(tmp_path / "whole.gguf", "llama"))
    with pytest.raises(PlanError, match="another reason"), naming_damage(model):
        raise PlanError("another reason")
    assert all(damage(tensor) == "" for tensor in model.tensors.values())
    broken = open_model(damaged(tmp_path, "output_norm.weight", -np.inf))
    with (
        pytest.raises(WeightError, match=r"output_norm.weight: 0 NaN and 1"),
        naming_damage(broken),
    ):
        raise PlanError("another reason")
