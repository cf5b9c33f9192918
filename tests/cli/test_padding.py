"""--pad: a model whose rows no type of few bits fits, from its header to llama.cpp and back."""

import json

import numpy as np
import pytest

from tests.cli.story import fails, succeeds
from tests.llama import kl_divergence, logprobs
from tests.tiny_models import write_tiny
from tqgguf.models import open_model
from tqgguf.pipeline import workers

TOKENS = np.random.default_rng(1).integers(3, 2048, 48).tolist()
SIZES = {"D": 480, "F": 480, "Q": 512, "K": 256, "H": 64, "R": 32}  # 480 is 15/16 of 512


@pytest.fixture(
    params=["llama", *(pytest.param(n, marks=pytest.mark.slow) for n in ("qwen3", "granite"))]
)
def original(request, tmp_path):
    return write_tiny(tmp_path / "a.gguf", request.param, sizes=SIZES)


def test_a_padded_file_runs_and_is_its_original(original, tmp_path):
    quant, back = tmp_path / "q.gguf", tmp_path / "back.gguf"
    options = ["--type", "q3_k", "--effort", "fast", "--rotate", "values"]
    plan = json.loads(succeeds("plan", original, *options, "--json"))
    said = json.loads(succeeds("quantize", original, "-o", quant, *options, "--json"))
    assert any("rows of the stream padded from 480 to 512, 6.7% more" in n for n in plan["notes"])
    assert {t["type"] for t in said["tensors"] if len(t["shape"]) > 1} == {"Q3_K"}
    weights = sum(t.size for t in open_model(original).tensors.values())
    tensors = sum(t["bytes"] for t in said["tensors"])
    assert said["bpw"] == plan["bpw"] == pytest.approx(8 * tensors / weights)
    assert 3.4375 * 512 / 480 < said["bpw"] < 4
    assert "agree" in succeeds("verify", quant, original)
    (row,) = json.loads(succeeds("compare", original, quant, "--json"))["models"]
    assert row["bpw"] == pytest.approx(said["bpw"])
    assert 0 < row["rel_mse"] < 0.05
    succeeds("dequantize", quant, "-o", back, "--type", "f32")
    runs, unpadded = (logprobs(path, TOKENS) for path in (quant, back))
    assert kl_divergence(unpadded, runs).mean() < 0.05  # llama.cpp rounds what meets Q3_K
    assert open_model(back).tensors.keys() == open_model(original).tensors.keys()


@pytest.mark.slow
@pytest.mark.parametrize("elsewhere", [["--threads", "2"], ["--cluster", "local:1"]])
def test_workers_that_open_the_model_themselves_pad_it_too(tmp_path, monkeypatch, elsewhere):
    monkeypatch.setattr(workers, "WORTH_PROCESSES", 0)
    original = write_tiny(tmp_path / "a.gguf", "llama-moe", sizes=SIZES)
    paths = tmp_path / "b.gguf", tmp_path / "c.gguf"
    options = ["--type", "q3_k", "--effort", "fast", "--rotate", "values", "--quiet"]
    for path, where in zip(paths, (["--threads", "1"], elsewhere), strict=True):
        succeeds("quantize", original, "-o", path, *options, *where)
    assert open_model(paths[0]).get("llama.embedding_length") == 512
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.slow
def test_what_is_not_padded(tmp_path):
    def planned(name, *options, **sizes):
        path = write_tiny(tmp_path / "a.gguf", name, sizes={**SIZES, **sizes})
        at = ("--rotate", "none")
        plan = json.loads(succeeds("plan", path, "--effort", "fast", *at, *options, "--json"))
        widths = {t["name"]: t["shape"][-1] for t in plan["tensors"]}
        return widths["token_embd.weight"], widths["blk.0.ffn_down.weight"], plan["notes"]

    assert planned("llama", "--type", "q3_k", "--pad", "none")[:2] == (480, 480)
    assert planned("llama", "--type", "q4_k")[:2] == (480, 480)
    one = ("--type", "q8_0", "--tensor-type", "attn_k=q3_k")
    assert planned("llama", *one)[:2] == (480, 480)
    assert planned("llama", "--type", "q3_k", D=416)[:2] == (416, 512)
    assert planned("llama", "--target-bpw", "3.7")[:2] == (512, 512)
    assert planned("llama", "--target-bpw", "5")[:2] == (480, 480)
    *widths, notes = planned("gpt2", "--type", "q3_k")
    assert widths == [480, 512]
    assert any("its LayerNorm takes the mean of all channels" in note for note in notes)
    *widths, notes = planned("qwen2", "--type", "q3_k", Q=480)
    assert widths == [480, 512]
    assert any("as wide as the stream" in note for note in notes)


def test_an_unknown_value_of_pad_is_one_line(tmp_path):
    original = write_tiny(tmp_path / "a.gguf", "llama")
    fails("plan", original, "--pad", "all", says="--pad all is unknown; known: auto, none")
