"""A command starts with its own modules alone, and every command can be found that way."""

import subprocess
import sys
from pathlib import Path

import pytest

import tqgguf.cli
from tqgguf.cli import app


def test_a_command_lies_in_the_module_of_its_name():
    names = {c.name or c.callback.__name__ for c in app.registered_commands}
    groups = {g.name for g in app.registered_groups}
    files = {p.stem for p in Path(tqgguf.cli.__file__).parent.glob("*.py")}
    assert {"quantize", "plan", "dequantize", "report"} <= names | groups <= files


def test_the_main_job_imports_no_other_command_and_no_calibration():
    script = "import sys; from tqgguf.cli import main\ntry: main()\nfinally: print(*sys.modules)"
    command = [sys.executable, "-c", script, "quantize", "/nowhere/model.gguf"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "/nowhere/model.gguf: no such file or folder" in done.stderr
    loaded = set(done.stdout.split())
    assert "tqgguf.cli.quantize" in loaded
    slow = {"cli.bench", "cli.ladder", "publishing", "measure", "turboquant", "models.huggingface"}
    slow |= {"calibration.calibrate", "calibration.cached", "calibration.forecast"}
    assert not {f"tqgguf.{name}" for name in slow} & loaded


@pytest.mark.parametrize(
    ("size", "options", "begun"),
    [
        (1 << 28, "--effort fast", "pipeline.workers"),
        (1 << 28, "--effort good", ""),
        (1 << 28, "--effort fast --threads 1", ""),
        (1 << 20, "--effort=fast", ""),
        (1 << 23, "--calibrate text", "calibration.work"),
    ],
)
def test_processes_for_a_large_model_begin_before_anything_is_imported(
    tmp_path, size, options, begun
):
    with (tmp_path / "model.gguf").open("wb") as file:
        file.truncate(size)  # a hole
    script = (
        "import os, signal, sys, time\n"
        "from tqgguf.cli import _expect_processes\n"
        "_expect_processes(sys.argv[1:])\n"
        "print(*sys.modules)\n"
        "from multiprocessing import forkserver\n"
        "pid = forkserver._forkserver._forkserver_pid\n"
        "print(*(forkserver._forkserver._preload_modules[1:] if pid else ()))\n"
        "if pid: time.sleep(0.1); os.kill(pid, signal.SIGINT); time.sleep(0.3)\n"
        "print(not pid or os.waitpid(pid, os.WNOHANG) == (0, 0))  # Ctrl-C is ours alone\n"
    )
    command = [sys.executable, "-c", script, "quantize", tmp_path / "model.gguf"]
    done = subprocess.run([*command, *options.split()], capture_output=True, text=True)
    modules, started, lives = done.stdout.splitlines()
    assert (started, lives, done.stderr) == (begun and f"tqgguf.{begun}", "True", "")
    assert "numpy" not in modules.split()
