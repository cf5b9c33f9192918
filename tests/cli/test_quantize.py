"""Stories of the main job: what a user types, and the exact line they get for a mistake."""

import errno
import json
import os
import shlex
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tqgguf.calibration.imatrix import read_imatrix, write_imatrix
from tqgguf.cli import app
from tqgguf.models import open_model
from tqgguf.network.memory import memory
from tqgguf.output.whole import whole_file
from tqgguf.planning.plan import Options

RUNNER = CliRunner()


def run(*args):
    return RUNNER.invoke(app, [str(a) for a in args])


def fails(*args, says, code=1):
    """The command exits with `code` and its last line on stderr says so."""
    result = run(*args)
    assert result.exit_code == code, result.output
    lines = result.stderr.strip().splitlines()
    assert lines[-1].startswith("error: ")
    assert says in lines[-1]
    assert "Traceback" not in result.output


@pytest.mark.slow
def test_quantize_beside_the_input_under_the_conventional_name(shallow, tmp_path):
    source = tmp_path / "shallow-2m-f16.gguf"
    source.write_bytes(shallow.read_bytes())
    result = run("quantize", source, "--type", "tq-q4", "--rotate", "fused")
    assert result.exit_code == 0, result.output
    written = tmp_path / "shallow-2m-TQ-Q4.gguf"
    assert written.is_file()
    assert "unrotated control" in result.stdout
    assert f"llama-cli -m {written}" in result.stdout
    assert run("verify", written, source).exit_code == 0


def test_json_is_one_document_with_the_contract_s_keys(shallow, tmp_path):
    fused = ("--rotate", "fused")
    result = run("quantize", shallow, "-o", tmp_path / "q.gguf", "-t", "TQ-q3", "--json", *fused)
    document = json.loads(result.stdout)
    assert {"output", "bytes", "bpw", "rotation", "tensors"} <= set(document)
    assert document["bytes"] == (tmp_path / "q.gguf").stat().st_size
    assert {"name", "type", "shape", "bpw", "reason", "rel_mse"} <= set(document["tensors"][0])
    assert document["rotation"]["mode"] == "fused"
    by_name = {t["name"]: t for t in document["tensors"]}
    assert 0 < by_name["blk.0.ffn_up.weight"]["rel_mse"] < 0.03
    assert by_name["blk.0.attn_norm.weight"]["rel_mse"] == 0


@pytest.mark.slow
def test_plan_and_dry_run_write_nothing_and_agree(shallow, tmp_path):
    plan = run("plan", shallow, "-t", "tq-q2", "--json")
    dry = run("quantize", shallow, "-t", "tq-q2", "--dry-run", "--json", "-o", tmp_path / "q.gguf")
    plan, dry = json.loads(plan.stdout), json.loads(dry.stdout)
    assert list(tmp_path.iterdir()) == []
    assert plan["tensors"] == dry["tensors"]
    done = json.loads(
        run("quantize", shallow, "-t", "tq-q2", "--json", "-o", tmp_path / "q.gguf").stdout
    )
    assert [t["type"] for t in done["tensors"]] == [t["type"] for t in plan["tensors"]]
    assert done["bpw"] == plan["bpw"]


def test_a_dry_run_names_the_shards_and_what_it_does_not_write(novels, tmp_path):
    arguments = ("quantize", novels, "-t", "q8_0", "--rotate", "none", "--dry-run")
    arguments += ("-o", tmp_path / "q.gguf", "--split-max-tensors", "20")
    imatrix = tmp_path / "i.imatrix"
    result = run(*arguments, "--save-imatrix", imatrix, "--json")
    assert f"note: --save-imatrix {imatrix}: nothing is written by --dry-run" in result.stderr
    planned = json.loads(result.stdout)["files"]
    assert [Path(f).name for f in planned] == [f"q-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    assert list(tmp_path.iterdir()) == []
    written = run(*(a for a in arguments if a != "--dry-run"), "--effort", "fast", "--json").stdout
    assert json.loads(written)["files"] == planned


@pytest.mark.parametrize("command", ["plan", "quantize"])
def test_both_commands_show_every_option_that_leads_to_a_plan(command):
    shown = run(command, "--help").output
    for field in fields(Options):
        assert f"--{field.name.replace('_', '-')}" in shown


def test_a_plan_refuses_the_imatrix_that_quantize_would_refuse(novels, tmp_path):
    theirs, rotated = novels.with_name("novels-5m.imatrix.gguf"), tmp_path / "rotated.imatrix"
    write_imatrix(rotated, replace(read_imatrix(theirs), basis="values sylvester 0 64 0 plain"))
    fails("plan", novels, "--imatrix", rotated, "--rotate", "none", says="taken in the basis 'valu")
    assert run("plan", novels, "--imatrix", theirs, "--rotate", "none").exit_code == 0


def test_plan_shows_the_fallbacks_and_the_cost_of_untying(stories):
    result = run("plan", stories, "--type", "q4_k", "--rotate", "fused")
    assert "rows of 172 do not fit Q4_K's blocks of 256" in result.stdout
    assert "untied: the fold needs an output head of its own" in result.stdout


def test_quiet_says_nothing(shallow, tmp_path):
    result = run("quantize", shallow, "-o", tmp_path / "q.gguf", "--quiet")
    assert result.exit_code == 0
    assert result.output == ""


def test_tensor_types_and_roles_can_be_chosen(shallow, tmp_path):
    result = run(
        *("quantize", shallow, "-o", tmp_path / "q.gguf", "--json", "--type", "q4_0"),
        *("--rotate", "fused"),
        *("--tensor-type", "ffn_down=q6_k", "--tensor-type", r"blk\.0\.=q8_0"),
        *("--output-type", "q5_k", "--token-embedding-type", "q2_k"),
    )
    types = {t["name"]: t["type"] for t in json.loads(result.stdout)["tensors"]}
    assert types["blk.0.ffn_down.weight"] == "Q6_K"
    assert types["blk.0.attn_q.weight"] == "Q8_0"
    assert types["blk.1.attn_q.weight"] == "Q4_0"
    assert types["output.weight"] == "Q5_K"
    assert types["token_embd.weight"] == "Q2_K"


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["fused", "tensor", "none"])
def test_every_mode_verifies_and_dequantizes(shallow, tmp_path, mode):
    quant, back = tmp_path / "q.gguf", tmp_path / "b.gguf"
    result = run("quantize", shallow, "-o", quant, "--rotate", mode)
    assert result.exit_code == 0
    assert ("llama-cli" in result.stdout) == (mode != "tensor")
    assert run("verify", quant, shallow).exit_code == 0
    assert run("dequantize", quant, "-o", back, "-q").exit_code == 0
    assert "tqgguf.rotation.mode = none" in run("inspect", back).stdout


@pytest.mark.slow
def test_inspect_shows_the_rotation(shallow, tmp_path):
    run("quantize", shallow, "-o", tmp_path / "q.gguf", "--rotate", "fused", "--seed", 7, "-q")
    result = run("inspect", tmp_path / "q.gguf")
    assert "tqgguf.rotation.seed = 7" in result.stdout
    assert "tqgguf.recipe = TQ-Q4" in result.stdout
    document = json.loads(run("inspect", tmp_path / "q.gguf", "--json").stdout)
    assert document["metadata"]["tqgguf.rotation.block_size"] == 256


def test_inspect_tells_a_downloader_what_a_file_is(stories, tmp_path):
    """In one screen; the numbers are those of the file."""
    quant = tmp_path / "it's.gguf"
    run("quantize", stories, "-o", quant, "--rotate", "values", "--effort", "fast", "-q")
    shown = dict(line.split(maxsplit=1) for line in run("inspect", quant).stdout.splitlines()[:6])
    model = open_model(quant)
    need = memory(model, 512)
    assert shown["file"].startswith(f"{quant.stat().st_size / 1e6:.1f} MB, ")
    assert (
        f"{8 * model.n_bytes / sum(t.size for t in model.tensors.values()):.2f} bits"
        in (shown["file"])
    )
    assert shown["recipe"] == "TQ-Q4 of tqgguf"
    assert shown["rotation"].startswith("values: channels are scaled and the values of each attent")
    assert shown["text"] == "none is recorded"
    told = run("inspect", quant, "--ctx", 512).stdout
    assert f"{need.total / 1e6:.1f} MB at a context of 512 tokens" in told
    assert f"llama-cli -m {shlex.quote(str(quant))} -c 512" in told
    listed = run("inspect", quant, "--tensors").stdout
    assert all(name in listed for name in model.tensors)
    assert "run it" not in listed
    assert "llama.block_count = 5" in run("inspect", quant, "--header").stdout
    document = json.loads(run("inspect", quant, "--json", "--ctx", 512).stdout)
    assert document["memory"]["total"] == need.weights + need.cache
    assert (document["recipe"], document["rotation"]) == ("TQ-Q4", "values")


def test_an_importance_matrix_is_no_model(novels, tmp_path):
    """Nor is a LoRA adapter; neither becomes a model of no use."""
    matrix = novels.with_name("novels-5m.imatrix.gguf")
    fails("quantize", matrix, "-o", tmp_path / "q.gguf", says="is an importance matrix, no model")
    fails("plan", matrix, says="and this with --imatrix")
    assert "llama-cli" not in run("inspect", matrix).stdout
    assert run("inspect", novels, "--tensors", "--ctx", 9).exit_code == 2  # it would have no effect
    assert run("inspect", novels, "--ctx", 2**31).exit_code == 2  # more than llama.cpp's -c holds
    assert not (tmp_path / "q.gguf").exists()


def test_what_is_not_asked_for_is_not_printed(stories):
    quick = ("--effort", "fast", "--rotate", "none", "-t", "q4_0", "--dry-run", "--quiet")
    said = run("quantize", stories, *quick)
    assert (said.exit_code, said.output) == (0, "")
    fails("quantize", stories, *quick, "--strict", says="which --strict forbids")
    assert json.loads(run("quantize", stories, *quick, "--json").stdout)["recipe"] == "Q4_0"


def test_ctrl_c_while_modules_are_loaded_shows_no_traceback():
    interrupt = (
        "import sys\n"
        "class Press:\n"
        "    def find_spec(name, path, target=None):\n"
        "        if name == 'tqgguf.cli.bench': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Press)\n"
        "from tqgguf.cli import main\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", interrupt], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_a_full_disk_is_told_with_the_file_s_name(tmp_path):
    path = tmp_path / "record.json"
    with pytest.raises(OSError, match=r"record\.json"), whole_file(path):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_where_nothing_is_rounded_nothing_is_calibrated(stories, calibration, tmp_path):
    quick = ("-t", "f16", "--calibrate", calibration, "-o", tmp_path / "q.gguf", "--threads", 1)
    said = run("quantize", stories, *quick)
    assert said.exit_code == 0
    assert "nothing is rounded" in said.stdout
    assert "calibrated on" not in said.stdout
    assert "of the divergence" not in said.stdout


def test_mistakes_get_one_line(novels, stories, tmp_path):
    out = tmp_path / "q.gguf"
    fails("quantize", tmp_path / "no[q4].gguf", says="no[q4].gguf: no such file")
    fails("quantize", novels, "-t", "q9_z", says="'q9_z' is unknown; known: TQ-Q4, TQ-Q4-FAST")
    fails("quantize", novels, "--rotate", "sideways", says="known: fused, auto, tensor, none")
    fused = ("--rotate", "fused")
    fails(
        "quantize", novels, *fused, "--block", "48", says="48: this model's rotation needs a power"
    )
    fails("quantize", novels, *fused, "--block", 512, says="does not divide the model's width of 2")
    fails("quantize", novels, "-o", tmp_path, says="is a folder; expected the name of a file")
    fails("quantize", novels, "-o", tmp_path / "x" / "q.gguf", says="does not exist")
    fails("quantize", stories, "-o", out, "--strict", says="which --strict forbids")
    fails("quantize", novels, "--tensor-type", "(=q4_0", says="is no regular expression")
    fails("quantize", novels, "--tensor-type", "a=q9", says="no tensor type 'q9'")
    fails("dequantize", novels, "-o", out, "-t", "q4_0", says="dequantize writes F32, F16, BF16")
    fails("verify", novels, stories, says="token_embd.weight has shape (2048, 256), expected")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_quantized_input_needs_consent(shallow, tmp_path):
    run("quantize", shallow, "-t", "q8_0", "-o", tmp_path / "q8.gguf", "--rotate", "none", "-q")
    again = ("quantize", tmp_path / "q8.gguf", "-o", tmp_path / "q4.gguf", "--quiet")
    fails(*again, says="accept the loss with --allow-requantize")
    assert run(*again, "--allow-requantize").exit_code == 0
    assert run("verify", tmp_path / "q4.gguf", shallow).exit_code == 0


@pytest.mark.slow
def test_a_rotated_input_is_not_rotated_twice(shallow, tmp_path):
    fused = ("--rotate", "fused")
    run("quantize", shallow, "-t", "f32", "-o", tmp_path / "f.gguf", "-q", *fused)
    again = ("quantize", tmp_path / "f.gguf", "-o", tmp_path / "q.gguf", "-q")
    fails(*again, *fused, says="already rotated by tqgguf; use --rotate none")
    assert run(*again, "--rotate", "none").exit_code == 0
    assert run("verify", tmp_path / "q.gguf", shallow).exit_code == 0


def test_an_unknown_architecture_is_explained(shallow, tmp_path):
    data = shallow.read_bytes().replace(b"llama", b"lhama")
    source = tmp_path / "m.gguf"
    source.write_bytes(data)
    fused = ("--rotate", "fused")
    fails("quantize", source, *fused, says="no fold is known for architecture 'lhama'")
    fails("quantize", source, *fused, says="use --rotate none")
    assert run("quantize", source, "--rotate", "none", "-q").exit_code == 0


def test_usage_errors_exit_with_2(novels):
    assert run("quantize", novels, "--bogus").exit_code == 2
    assert run("quantize", novels, "--block", "-3").exit_code == 2
    assert run("quantize", novels, "--tensor-type", "q4_0").exit_code == 2
    assert run("quantize").exit_code == 2


def test_every_command_s_help_ends_with_an_example():
    commands = [c.name or c.callback.__name__ for c in app.registered_commands]
    assert {"quantize", "plan", "inspect", "verify", "dequantize"} <= set(commands)
    for name in commands:
        result = run(name, "--help")
        assert result.exit_code == 0
        assert f"Example: tqgguf {name}" in " ".join(result.output.split())


@pytest.mark.slow
def test_a_full_disk_gives_one_line_and_leaves_nothing(shallow, tmp_path):
    script = "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (10**6, 10**6)); "
    script += "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    script += "from tqgguf.cli import main; main()"
    command = [sys.executable, "-c", script, "quantize", shallow, "-o", tmp_path / "q.gguf"]
    result = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert result.returncode == 1
    assert "file too large (the output takes 1." in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_tensor_larger_than_a_shard_is_said(stories, tmp_path):
    output = tmp_path / "q.gguf"
    options = ("-t", "q8_0", "--rotate", "none", "--effort", "fast", "--split-max-size", "20K")
    result = run("quantize", stories, *options, "-o", output)
    assert result.exit_code == 0
    assert "bytes, more than --split-max-size 20,000: its file is larger" in result.stderr


def test_a_name_on_the_hub_that_is_none(tmp_path):
    result = run("quantize", "hf://org", "-o", tmp_path / "q.gguf")
    assert result.exit_code == 2
    assert "hf://org is neither hf://ORG/NAME" in result.stderr
