import json
from pathlib import Path

import pytest

from tqgguf.errors import ToolError
from tqgguf.llamacpp import Sample, ToolOutput, Workload, measure_speed, rounds, summarize
from tqgguf.llamacpp.bench import parse


def test_real_output_gives_speed_and_size(capture):
    tests = json.loads(capture("bench").stdout)
    f16 = parse(ToolOutput(json.dumps(tests[:2]), ""), "a.gguf")
    assert f16 == Sample("a.gguf", 10499072, 5246208, tests[0]["avg_ts"], tests[1]["avg_ts"])
    assert tests[0]["n_prompt"] == 64
    assert tests[1]["n_gen"] == 16
    only_decode = parse(ToolOutput(json.dumps(tests[3:]), ""), "b.gguf")
    assert only_decode.pp is None
    assert only_decode.tg == tests[3]["avg_ts"]


@pytest.mark.parametrize("keep", [0, 1, 40, 3000])
def test_output_cut_short_is_an_error(capture, keep):
    output = ToolOutput(capture("bench").stdout[:keep], "")
    with pytest.raises(ToolError, match=r"llama-bench: printed no usable JSON for m\.gguf"):
        parse(output, "m.gguf")


@pytest.mark.parametrize("text", ["[]", "{}", "null", "[{}]", '[{"n_gen": 1, "avg_ts": "x"}]'])
def test_json_of_another_shape_is_an_error(text):
    with pytest.raises(ToolError, match="no usable JSON"):
        parse(ToolOutput(text, ""), "m.gguf")


def test_the_reason_is_quoted_from_a_real_failure(capture):
    with pytest.raises(ToolError, match=r"failed to load model 'nope\.gguf'"):
        parse(capture("bench_missing"), "nope.gguf")


def test_rounds_interleave_and_turn_round(program, tmp_path):
    program("llama-bench", 'echo "$2" >> "$0.log"; cat "$0.json"')
    test = {"n_gen": 8, "avg_ts": 2.0, "model_size": 9, "model_n_params": 8}
    (tmp_path / "llama-bench.json").write_text(json.dumps([test]))
    models = [Path("a"), Path("b"), Path("c")]
    samples = list(rounds(models, Workload(), count=2))
    assert [s.model for s in samples] == list("abccba")
    assert (tmp_path / "llama-bench.log").read_text().split() == list("abccba")


def test_the_workload_reaches_the_program(program, tmp_path, capture):
    program("llama-bench", 'echo "$@" > "$0.log"; cat "$0.json"')
    (tmp_path / "llama-bench.json").write_text(capture("bench").stdout)
    measure_speed(Path("m.gguf"), Workload(prompt=0, generate=5, threads=3, gpu_layers=9))
    said = (tmp_path / "llama-bench.log").read_text()
    assert said == "-m m.gguf -o json -p 0 -n 5 -r 1 -t 3 -ngl 9\n"


@pytest.mark.tools
def test_a_name_with_commas_is_one_name(novels, tmp_path):
    model = tmp_path / "a, b" / "m,n.gguf"
    model.parent.mkdir()
    model.symlink_to(novels.absolute())
    sample = measure_speed(model, Workload(prompt=1, generate=0, threads=1))
    assert (sample.model, sample.tensor_bytes) == (str(model), 10499072)


def test_medians_ranges_and_ratios():
    speeds = [("a", 10.0), ("b", 30.0), ("b", 10.0), ("a", 20.0), ("a", 90.0), ("b", 40.0)]
    a, b = summarize(Sample(name, 9, 16, None, tg) for name, tg in speeds)
    assert (a.model, a.tg, a.tg_ratio, a.tg_range) == ("a", 20.0, 1.0, (10.0, 90.0))
    assert (b.model, b.tg, b.tg_ratio, b.tg_range) == ("b", 30.0, 1.5, (10.0, 40.0))
    assert (a.tensor_bytes, a.weights) == (9, 16)
    assert (a.pp, a.pp_ratio, a.pp_range) == (None, None, None)


def test_nothing_measured_is_nothing():
    assert summarize([]) == []
