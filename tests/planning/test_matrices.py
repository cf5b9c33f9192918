"""Types reach matrices alone, as llama-quantize's do, and options without effect say so."""

import re
import subprocess
from dataclasses import replace

import gguf
import numpy as np
import pytest

from tests.cli.story import fails, run, succeeds
from tests.tiny_models import write_tiny
from tqgguf.calibration.imatrix import read_imatrix, write_imatrix
from tqgguf.llamacpp.tools import find
from tqgguf.models import Tensor, open_model
from tqgguf.models.model import Model
from tqgguf.planning.matrices import is_matrix, may_be_quantized, needs_f32
from tqgguf.planning.plan import Options
from tqgguf.planning.planner import make_plan


def tensor(name, *shape, type="F16"):
    return Tensor(name, shape, type, rows=None)


@pytest.fixture
def tiny(tmp_path):
    return write_tiny(tmp_path / "tiny.gguf", "qwen2")


def plan(path, **options):
    return make_plan(open_model(path), Options(type="q8_0", rotate="none", **options))


@pytest.mark.tools
@pytest.mark.parametrize("name", ["qwen2moe", "gpt2", "qwen35", "deepseek2"])
def test_a_rule_for_everything_reaches_what_llama_quantize_lets_it_reach(tmp_path, name):
    source, theirs = write_tiny(tmp_path / "m.gguf", name), tmp_path / "q.gguf"
    command = [find("llama-quantize"), "--tensor-type", ".*=q8_0", source, theirs, "q4_0", "1"]
    subprocess.run(command, check=True, capture_output=True)
    found = {t.name: t.tensor_type.name for t in gguf.GGUFReader(theirs).tensors}
    ours = {t.name: t.type for t in plan(source, tensor_type=[(".*", "q8_0")]).tensors}
    whole = [n for n, t in open_model(source).tensors.items() if t.n_in % 32 == 0]
    assert {n: ours[n] for n in whole} == {n: found[n] for n in whole}
    assert {"F32", "Q8_0"} <= set(ours.values())


@pytest.mark.parametrize(
    "other",
    [
        tensor("blk.0.attn_q.bias", 64, type="F32"),
        tensor("blk.0.attn_q_norm.weight", 4, 64),
        tensor("blk.0.ffn_gate_inp.weight", 4, 64),
        tensor("blk.0.ffn_gate_tid2eid.weight", 256, 32, type="I32"),
        tensor("blk.0.a_table.weight", 256, 32, type="I64"),
        tensor("v.patch_embd.weight", 64, 3, 32, 32),
        tensor("v.position_embd.weight", 16, 64),
        tensor("some.weight", 4, 3, 32, 32),
        tensor("a.conv1d.1.weight", 64, 64, 32),
        tensor("blk.0.ssm_conv1d.weight", 64, 32),
        tensor("blk.0.time_mix_w1.weight", 64, 32),
        tensor("rope_freqs.weight", 32, type="F32"),
    ],
    ids=lambda t: t.name,
)
def test_what_is_no_matrix_keeps_its_numbers(other, tmp_path):
    assert not may_be_quantized(other)
    model = Model(tmp_path, {}, {other.name: other})
    (planned,) = make_plan(
        model, Options(type="q8_0", rotate="none", tensor_type=[(".*", "q4_0")])
    ).tensors
    assert planned.type == ("F32" if needs_f32(other) else other.type)


@pytest.mark.parametrize("name", ["blk.0.ssm_x.weight", "blk.0.time_mix_key.weight"])
def test_a_rule_reaches_what_recipes_leave_alone(name):
    other = tensor(name, 64, 64)
    assert may_be_quantized(other)
    assert not is_matrix(other)


def test_letters_case_does_not_count_and_the_first_rule_wins(tiny):
    rules = [(r"BLK\.0\.", "q4_0"), ("Attn_Q", "q5_0")]
    types = {t.name: t.type for t in plan(tiny, tensor_type=rules).tensors}
    assert types["blk.0.attn_q.weight"] == types["blk.0.ffn_up.weight"] == "Q4_0"
    assert types["blk.1.attn_q.weight"] == "Q5_0"
    assert types["blk.1.attn_k.weight"] == "Q8_0"
    assert types["blk.0.attn_q.bias"] == types["blk.0.attn_norm.weight"] == "F32"


def test_the_options_of_the_tables_are_stronger_than_rules(tmp_path):
    untied = write_tiny(tmp_path / "untied.gguf", "llama")
    tied = write_tiny(tmp_path / "tied.gguf", "llama", tied=True)
    everything = {"tensor_type": [(".*", "q5_0")]}

    def table(path, name, **options):
        return next(t.type for t in plan(path, **options).tensors if t.name == f"{name}.weight")

    assert table(untied, "output", output_type="q4_0", **everything) == "Q4_0"
    assert table(untied, "token_embd", token_embedding_type="q4_0", **everything) == "Q4_0"
    assert table(untied, "token_embd", output_type="q4_0") == "Q8_0"
    assert table(tied, "token_embd", output_type="q4_0") == "Q4_0"  # it is the head as well
    assert table(tied, "token_embd", output_type="q4_0", **everything) == "Q5_0"
    assert table(tied, "token_embd", output_type="q4_0", token_embedding_type="f16") == "F16"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tensor_type": [("atn_q", "q4_0")]}, "atn_q=q4_0 matches no tensor; is attn_q meant?"),
        ({"tensor_type": [("a=q8_0,b", "q4_0")]}, "give each rule a --tensor-type of its own"),
        ({"tensor_type": [("attn_norm", "q4_0")]}, "matches no matrix: blk.0.attn_norm.weight"),
        ({"tensor_type": [("attn", "q4_0"), ("attn_q", "q8_0")]}, "attn_q=q8_0 has no effect"),
        ({"block": 32}, "--block has no effect on --rotate none"),
        ({"seed": 3}, "--seed has no effect on --rotate none"),
        ({"type": "q5_k", "target_bpw": 9.0}, "--type q5_k has no effect on matrices whose types"),
        ({"balance": False}, "--no-balance has no effect on --rotate none"),
        ({"type": "f16", "effort": "best"}, "--effort best has no effect: nothing is rounded"),
    ],
)
def test_options_that_change_nothing_are_named(tiny, options, says):
    asked = Options(**{"type": "tq-q4", "rotate": "none", **options})
    (line,) = make_plan(open_model(tiny), asked).idle
    assert says in line


def test_they_are_warnings_and_errors_with_strict(tiny, tmp_path):
    rest = ("-t", "q8_0", "--rotate", "none", "--tensor-type", "atn_q=q4_0", "-o", tmp_path / "q")
    fails("quantize", tiny, *rest, "--strict", says="matches no tensor; is attn_q meant?; --strict")
    result = run("quantize", tiny, *rest)
    assert result.exit_code == 0
    assert "warning: --tensor-type atn_q=q4_0 matches no tensor" in result.stderr
    assert "matches no tensor" in succeeds("plan", tiny, *rest[:-2])


def test_how_many_matrices_an_imatrix_covers_is_said(novels, tmp_path):
    whole = read_imatrix(novels.with_name("novels-5m.imatrix.gguf"))

    def planned(rename):
        path = tmp_path / "some.imatrix"
        sums, counts = ({rename(n): x for n, x in d.items()} for d in (whole.sums, whole.counts))
        write_imatrix(path, replace(whole, sums=sums, counts=counts))
        return succeeds("plan", novels, "-t", "q4_0", "--rotate", "none", "--imatrix", path)

    assert "covers" not in planned(lambda name: name)
    some = planned(lambda name: name.replace("blk.0.", "blk.99."))
    assert re.search(r"covers 35 of 42 matrices; the errors of blk.0[^ ]+ and 6 more are", some)
    none = planned(lambda name: f"v.{name}")
    assert "covers 0 of 42 matrices, so it has no effect: it belongs to another model" in none
    assert "errors are weighed by" in some
    assert "errors are weighed by" not in none


def test_verify_refuses_what_llama_cpp_cannot_compute_with(tiny, tmp_path):
    fails("verify", halved(tiny, tmp_path), tiny, says="norm.weight is F16, but llama.cpp takes")


def halved(source, folder):
    """A copy whose norms are F16."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(folder / "halved.gguf", "qwen2")
    for field in reader.fields.values():
        if not field.name.startswith(("GGUF.", "general.architecture")):
            kind, *item = field.types
            writer.add_key_value(field.name, field.contents(), kind, sub_type=(item or [None])[-1])
    for t in reader.tensors:
        norm = "norm" in t.name
        writer.add_tensor(t.name, np.asarray(t.data, np.float16 if norm else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "halved.gguf"
