"""Progress where stderr is no terminal: plain lines now and then, or nothing at all."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OFTEN = "from tqgguf.cli import console, main; console._SECONDS_BETWEEN_LINES = 0.01; main()"
LINE = re.compile(r"q\.gguf: (\d+)% of 1\.\d+MB, \d\d:\d\d left, [\d.]+[kM]?B/s")


def quantize(shallow, folder, *options, script=OFTEN):
    command = [sys.executable, "-c", script, "quantize", shallow, "-o", folder / "q.gguf"]
    done = subprocess.run(
        [*command, "--threads", "1", *options], cwd=ROOT, capture_output=True, check=True
    )
    return done.stdout.decode(), done.stderr.decode()


@pytest.mark.slow
def test_a_log_file_gets_plain_lines_with_speed_and_eta(shallow, tmp_path):
    _, stderr = quantize(shallow, tmp_path)
    lines = stderr.splitlines()
    assert len(lines) > 3
    assert all(LINE.fullmatch(line) for line in lines), lines
    shares = [int(LINE.fullmatch(line)[1]) for line in lines]
    assert shares == sorted(shares)
    assert not re.search(r"[\r\x1b]", stderr)


@pytest.mark.slow
def test_a_run_of_seconds_has_no_progress_to_tell(shallow, tmp_path):
    _, stderr = quantize(shallow, tmp_path, script="from tqgguf.cli import main; main()")
    assert stderr == ""


@pytest.mark.slow
def test_verbose_lines_stand_between_those_of_progress(shallow, tmp_path):
    _, stderr = quantize(shallow, tmp_path, "--verbose")
    lines = stderr.splitlines()
    tensors = [line for line in lines if re.match(r"\[\d+/20\] \S+: ", line)]
    assert len(tensors) == 20
    assert all(LINE.fullmatch(line) for line in set(lines) - set(tensors))


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--quiet"], ["--quiet", "--verbose"]])
def test_quiet_is_silent(shallow, tmp_path, options):
    assert quantize(shallow, tmp_path, *options) == ("", "")
