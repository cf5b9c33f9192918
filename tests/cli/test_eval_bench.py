"""Stories of `tqgguf eval` and `tqgguf bench`, told by the real programs."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import alive, started, wait_for
from typer.testing import CliRunner

from tqgguf.cli import app
from tqgguf.llamacpp import find

RUNNER = CliRunner()
ROOT = Path(__file__).parent.parent.parent


def run(*args):
    return RUNNER.invoke(app, [str(a) for a in args])


def last_error(result):
    assert result.exit_code == 1, result.output
    return result.stderr.strip().splitlines()[-1]


@pytest.fixture
def nothing_installed(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA_CPP_BIN", str(tmp_path))


@pytest.mark.usefixtures("nothing_installed")
def test_missing_programs_say_how_to_get_them(novels, text, tmp_path):
    where = f"not found in $LLAMA_CPP_BIN ({tmp_path}); build it with: make llama.cpp"
    result = run("eval", novels, novels, "--text", text)
    assert last_error(result) == f"error: llama-perplexity: {where}"
    result = run("bench", novels, "--types", "tq-q4", "--baselines", "Q4_0")
    assert last_error(result) == f"error: llama-bench: {where}"


@pytest.mark.parametrize("command", ["eval", "bench"])
def test_a_picture_is_refused_before_any_work(novels, text, tmp_path, command):
    extra = [novels, "--text", text] if command == "eval" else []
    result = run(command, novels, *extra, "--plot", tmp_path / "front.txt")
    assert "front.txt" in last_error(result)


@pytest.mark.usefixtures("nothing_installed")
def test_missing_files_are_named(novels, text, tmp_path):
    missing = f"error: {tmp_path}/no.gguf: no such file or folder"
    assert last_error(run("eval", tmp_path / "no.gguf", novels, "--text", text)) == missing
    assert last_error(run("eval", novels, tmp_path / "no.gguf", "--text", text)) == missing
    assert last_error(run("bench", novels, tmp_path / "no.gguf")) == missing
    result = run("eval", novels, novels, "--text", tmp_path / "no.txt")
    assert last_error(result) == f"error: {tmp_path}/no.txt: no such text file"


@pytest.mark.tools
def test_a_benchmark_of_a_missing_or_broken_file_names_it(novels, tmp_path):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(novels.read_bytes()[:5_000_000])
    assert f"{cut}: " in last_error(run("bench", novels, cut))
    missing = tmp_path / "no.gguf"
    assert last_error(run("bench", missing)) == f"error: {missing}: no such file or folder"
    error = last_error(run("bench", novels, "--baselines", "Q9"))
    assert error.endswith(
        "llama-quantize: exited with status 1: llama_quantize: invalid ftype 'Q9'"
    )


def test_nothing_to_measure_is_a_usage_error(novels):
    assert run("bench", novels, "-p", 0, "-n", 0).exit_code == 2


@pytest.mark.usefixtures("nothing_installed")
@pytest.mark.parametrize("nothing", [[], ["--types", " ,"]])
def test_nothing_to_compare_is_a_usage_error(novels, text, nothing):
    assert run("eval", novels, "--text", text, *nothing).exit_code == 2


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_installed")
def test_the_script_finds_python_and_passes_the_error_on(novels):
    script = ROOT / "scripts" / "bench_e2e.sh"
    done = subprocess.run(
        [script, novels],
        env=os.environ | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.strip().endswith("build it with: make llama.cpp")
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.tools
@pytest.mark.usefixtures("cache")
def test_eval_prints_a_table_a_document_and_a_picture(shallow, text, tmp_path):
    quant = tmp_path / "shallow-2m-TQ-Q2.gguf"
    assert run("quantize", shallow, "--type", "tq-q2", "-o", quant).exit_code == 0
    common = [shallow, quant, "--text", text, "--ctx", 64, "--chunks", 2, "--threads", 1]
    plot = tmp_path / "front.svg"
    result = run("eval", *common, "--bench", "--rounds", 1, "--json", "--plot", plot)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    (row,) = document["rows"]
    keys = {"model", "bytes", "bpw", "ppl", "kld_mean", "kld_p999", "kld_max", "same_top"}
    assert keys <= row.keys()
    assert row["model"] == str(quant)
    assert row["bytes"] == quant.stat().st_size
    assert row["pareto"]
    assert 0 < row["kld_mean"] < row["kld_max"]
    assert row["tg"] > 0
    assert document["original"]["ppl"] < row["ppl"]
    assert "<svg" in plot.read_text()
    shown = run("eval", *common, "--markdown")
    assert "| shallow-2m-f16.gguf (original) | 4,245,440 | 16.010 |" in shown.stdout
    assert f"| {quant.name} | {row['bytes']:,} |" in shown.stdout
    more = run("eval", *common, "--baselines", "q2_k", "--types", "q2_k", "--json")
    names = [Path(row["model"]).name for row in json.loads(more.stdout)["rows"]]
    assert names == [quant.name, "shallow-2m-Q2_K.gguf", "shallow-2m-TQ-Q2_K.gguf"]
    again = run("eval", *common, "--plot", plot)
    assert "exists already; overwrite it with --force" in last_error(again)


@pytest.mark.tools
@pytest.mark.usefixtures("cache")
def test_eval_of_a_damaged_file_quotes_llama_cpp_or_our_reader(novels, text, tmp_path):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(novels.read_bytes()[:5_000_000])
    common = ["--text", text, "--ctx", 64, "--chunks", 2, "--threads", 1]
    result = run("eval", novels, cut, *common)
    assert f"{cut}: " in last_error(result)


@pytest.mark.tools
@pytest.mark.usefixtures("cache")
def test_bench_prints_a_table_csv_and_a_document(shallow, tmp_path):
    common = ["bench", shallow, "--rounds", 1, "-p", 8, "-n", 4, "--threads", 1]
    plot = tmp_path / "speed.png"
    result = run(*common, "--baselines", "F16,Q2_K", "--types", "tq-q4", "--json", "--plot", plot)
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    names = ["shallow-2m-f16.gguf", "shallow-2m-Q2_K.gguf", "shallow-2m-TQ-Q4.gguf"]
    assert [Path(row["model"]).name for row in rows] == names
    assert all({"model", "bytes", "bpw", "pp", "tg", "tg_ratio"} <= row.keys() for row in rows)
    assert plot.read_bytes().startswith(b"\x89PNG")
    table = run(*common)
    assert "ratio: to shallow-2m-f16.gguf" in table.stdout
    values = list(csv.DictReader(io.StringIO(run(*common, "--csv").stdout)))
    assert values[0]["model"] == str(shallow)
    assert float(values[0]["tg"]) > 0


@pytest.mark.tools
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_benchmark_leaves_no_llama_bench_running(shallow, tmp_path, number):
    """The script becomes the program, so a signal to it reaches the one that owns the child."""
    note, program = tmp_path / "pid", tmp_path / "llama-bench"
    real = find("llama-bench")
    program.write_text(f'#!/bin/sh\necho $$ > {note}.new\nmv {note}.new {note}\nexec {real} "$@"\n')
    program.chmod(0o755)
    script = [ROOT / "scripts" / "bench_e2e.sh", shallow, "-n", "1000000", "--threads", "1"]
    settings = {"PYTHON": sys.executable, "LLAMA_CPP_BIN": str(tmp_path)}
    with started(script, env=os.environ | settings, stderr=subprocess.PIPE) as parent:
        wait_for(note.exists)
        child = int(note.read_text())
        assert alive(child)
        parent.send_signal(number)
        said = parent.communicate(timeout=20)[1]
    assert (parent.returncode, said.strip()) == (128 + number, "interrupted")
    wait_for(lambda: not alive(child))
