"""Stories of `tqgguf report`: contract of its JSON, tables, pictures, and mistakes."""

import json
import os
import re
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest

from tests.cli.story import fails, succeeds
from tqgguf.calibration.imatrix import write_imatrix
from tqgguf.calibration.statistics import input_energies
from tqgguf.measure import kv, mse, synthetic, turboquant
from tqgguf.models import open_model


@pytest.mark.slow
def test_report_mse_without_a_model_has_the_contracts_keys():
    document = json.loads(
        succeeds("report", "mse", "--types", "q4_0", "--sample-rows", 8, "--json")
    )
    rows = document["rows"]
    assert [r["format"] for r in rows[:2]] == ["Q4", "TQ-Q4"]
    for row in rows:
        assert {"format", "bpw", "mse", "rel_mse", "max_abs_err", "verdict"} <= set(row)
    expected = synthetic.measure_synthetic(
        synthetic.make_weights(seed=0), types=["Q4_0"], gguf_rows=8
    )
    assert [r["mse"] for r in rows] == [r.mse for r in expected]


@pytest.mark.slow
def test_report_mse_prints_verdicts_and_what_was_sampled_and_draws(tmp_path):
    path = tmp_path / "synthetic.svg"
    text = succeeds("report", "mse", "--types", "tq-q4", "--sample-rows", 8, "--plot", path)
    assert "matches baseline-Q4 quality" in text
    assert "exceeds baseline-Q4 error" in text
    assert "GGUF types were measured on 8 of the 4096 rows" in text
    assert path.read_bytes().startswith(b"<?xml")
    assert path.stat().st_size > 10_000


@pytest.mark.slow
def test_the_default_synthetic_report_measures_a_few_rows():
    """Which is what makes it a matter of seconds (make bench-kernels has the encoders' speed)."""
    command = [sys.executable, "-m", "tqgguf", "report", "mse"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=True)
    assert "TQ-Q2_K" in done.stdout
    measured = re.search(r"measured on (\d+) of the 4096 rows", done.stdout)
    assert 16 <= int(measured[1]) <= 1024


@pytest.fixture(scope="module")
def shallow_document(shallow):
    return json.loads(
        succeeds("report", "mse", shallow, "--types", "Q4_0", "--effort", "fast", "--json")
    )


@pytest.mark.slow
def test_report_mse_of_a_model_has_the_contracts_keys_and_the_librarys_numbers(
    shallow, shallow_document
):
    opened = open_model(shallow)
    rotation, _ = mse.studied_rotation(opened)
    reports = {r.name: r for r in mse.measure_weights(opened, rotation, types=["Q4_0"])}
    assert len(shallow_document["tensors"]) == len(reports)
    for row in shallow_document["tensors"]:
        expected = reports[row["name"]]
        assert row["kurtosis"] == expected.kurtosis
        assert row["kurtosis_rotated"] == expected.kurtosis_rotated
        errors = expected.types["Q4_0"]
        assert row["types"]["Q4_0"]["rel_mse"] == errors.rel_mse
        assert row["types"]["Q4_0"]["rel_mse_rotated"] == errors.rel_mse_rotated
        assert row["types"]["Q4_0"]["gain"] == errors.gain
    assert shallow_document["rotation"]["mode"] == "fused"


@pytest.mark.slow
def test_report_mse_judges_by_the_outputs_where_an_imatrix_tells_the_inputs(shallow, tmp_path):
    tokens = np.random.default_rng(0).integers(3, 2048, (1, 64)).astype(np.int32)
    path = tmp_path / "imatrix.gguf"
    write_imatrix(path, input_energies(open_model(shallow), tokens))
    command = ["report", "mse", shallow, "--types", "q4_0", "--imatrix", path]
    shown = json.loads(succeeds(*command, "--sample-rows", 512, "--json"))
    (total,), (advice,) = shown["totals"], shown["advice"]
    gain = total["predicted"] / total["predicted_rotated"]
    assert 1.01 < gain != total["gain"]
    assert total["verdict"].endswith(f"at the outputs it lowers it {gain:.2f}x")
    assert advice.startswith("Q4_0: --rotate auto: ")
    assert "predicted output error" in advice
    text = succeeds(*command, "--sample-rows", 512, "--top", 1)
    assert total["verdict"] in text
    assert advice in text


def test_report_mse_says_what_it_measured_the_inputs_on(stories):
    text = succeeds("report", "mse", stories, "--types", "q8_0", "--top", 1)
    assert "tokens of the built-in text" in text or "no text was used" in text
    other = succeeds("report", "mse", stories, "--types", "q8_0", "--top", 1, "--effort", "fast")
    assert "at the outputs" not in other
    fails("report", "mse", stories, "--effort", "best", says="known: fast, good")


def test_report_mse_of_a_model_says_rotation_order_and_verdict(stories):
    text = succeeds("report", "mse", stories, "--types", "q4_0,q8_0", "--top", 3)
    assert "fused, as `quantize` folds it: blocks of 64 along the residual stream" in text
    assert "... and 29 more matrices (--top 0 shows all)" in text
    assert "Q4_0: rotation lowers the error of " in text
    assert "Left out: blk.0.ffn_down.weight and 4 more, whose rows of 172 do not fit Q4_0" in text


def test_markdown_tables_have_the_same_cells_everywhere(stories):
    for command in (
        ("mse", stories, "--types", "q8_0", "--markdown"),
        ("turboquant", "--dim", 16, "--vectors", 50, "--markdown"),
        ("kv", "--dim", 16, "--length", 50, "--queries", 2, "--markdown"),
    ):
        lines = [line for line in succeeds("report", *command).splitlines() if line[:1] == "|"]
        assert len(lines) > 3
        assert len({line.count("|") for line in lines}) == 1
        assert lines[1].startswith("| --- | ---: |")


def test_report_turboquant_has_the_contracts_keys():
    command = ("--bits", "2,3", "--dim", 64, "--vectors", 500, "--json")
    document = json.loads(succeeds("report", "turboquant", *command))
    expected = turboquant.distortions(bits=[2, 3], dim=64, vectors=500)
    for row, known in zip(document["rows"], expected, strict=True):
        assert {k: row[k] for k in asdict(known)} == asdict(known)
        assert row["dim_d_prod"] == 64 * known.d_prod
        assert {"d_mse_paper", "d_prod_paper", "bias", "bias_stderr", "bits_per_value"} <= set(row)


def test_report_kv_has_the_contracts_keys():
    command = ("--bits", 3, "--dim", 64, "--length", 300, "--json")
    document = json.loads(succeeds("report", "kv", *command))
    expected = kv.simulate_cache(bits=[3], dim=64, length=300)
    assert document["rows"] == [asdict(row) for row in expected]
    assert {"bits", "score_correlation", "output_rel_error", "compression"} <= set(
        document["rows"][0]
    )


def test_the_reports_say_what_qjl_buys_and_what_the_paper_rounds():
    assert "unbiased scores, not accurate ones" in succeeds("report", "kv", "--length", 64)
    text = succeeds("report", "turboquant", "--bits", 4, "--dim", 16, "--vectors", 50)
    assert "the paper prints 0.047 at 4 bits" in text
    assert "0.047" in text


@pytest.mark.slow
@pytest.mark.parametrize(("suffix", "magic"), [("png", b"\x89PNG"), ("pdf", b"%PDF")])
def test_plots_are_pictures(stories, tmp_path, suffix, magic):
    path = tmp_path / f"model.{suffix}"
    succeeds("report", "mse", stories, "--types", "q8_0,q4_0", "--plot", path)
    assert path.read_bytes().startswith(magic)
    assert path.stat().st_size > 10_000
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_mistakes_get_one_line(novels, stories, tmp_path, monkeypatch):
    fails("report", "mse", tmp_path / "none.gguf", says="no such file")
    fails("report", "mse", "--types", "q9", says="type 'q9' is unknown; known: TQ-Q4")
    fails("report", "mse", "--types", ",", says="--types is empty")
    fails("report", "mse", "--types", "q4_0,f16", says="F16 has no blocks to round to")
    fails("report", "mse", stories, "--types", "q4_k", says="no row fits Q4_K's blocks of 256")
    fails("report", "mse", novels, "--block", 96, says="--block 96")
    fails("report", "turboquant", "--dim", 96, says="use 64 or 128, or the dense rotation")
    fails("report", "turboquant", "--bits", "two", says="--bits 'two': expected whole numbers")
    fails("report", "turboquant", "--bits", 12, says="bits 12: a code has 0 to 8 bits")
    fails("report", "turboquant", "--sketch", "x", says="known: gaussian, rademacher")
    fails("report", "kv", "--rotation", "x", says="known: hadamard, dense")
    taken = tmp_path / "taken.png"
    taken.write_bytes(b"mine")
    fails("report", "mse", "--plot", taken, says="exists already; overwrite it with --force")
    fails("report", "mse", "--plot", tmp_path / "x.bmp", says="ends in .png, .svg, .pdf")
    fails("report", "mse", "--plot", tmp_path / "no" / "x.png", says="does not exist")
    assert taken.read_bytes() == b"mine"
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    fails("report", "mse", "--plot", tmp_path / "x.png", says="pip install 'tqgguf[plot]'")
