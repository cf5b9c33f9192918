"""--cluster: the same bytes from processes that share files, also when some of them die."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import dask
import distributed  # noqa: F401  fills dask's configuration, which a test changes
import numpy as np
import pytest

from tests.models.huggingface.folders import write_folder
from tests.tiny_models import write_tiny
from tqgguf.calibration.calibrated import Calibrated
from tqgguf.errors import PlanError, ToolError
from tqgguf.formats import quantize
from tqgguf.machine.machine import Machine
from tqgguf.models import open_model
from tqgguf.output.files import partial_path
from tqgguf.output.journal import journal_path
from tqgguf.pipeline import convert
from tqgguf.planning.plan import Options
from tqgguf.planning.planner import make_plan

ROOT = Path(__file__).parent.parent


def job(source, path, **options):
    model = open_model(source)
    return convert(
        model,
        make_plan(model, Options(type="tq-q3", rotate="fused", effort="fast")),
        path,
        **options,
    )


@pytest.fixture(scope="module")
def whole(shallow, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "q.gguf"
    list(job(shallow, path))
    return path.read_bytes()


def lose(shallow, path, victim):
    command = [sys.executable, "-m", "tests.lose_worker", shallow, path, victim]
    patience = {"worker": "10s", "all": "3s"}[victim]  # with the dead
    env = {**os.environ, "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": patience}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")  # dask's own log would be a second line
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_the_work_of_a_killed_worker_is_done_again(shallow, tmp_path, whole):
    path = tmp_path / "q.gguf"
    answer = lose(shallow, path, "worker")
    assert answer["error"] == ""
    assert answer["reports"] == 21
    assert set(answer["workers"]) - {answer["killed"]}  # others took over
    assert path.read_bytes() == whole
    assert [p.name for p in tmp_path.iterdir()] == ["q.gguf"]


@pytest.mark.slow
def test_a_lost_cluster_is_one_line_and_the_run_resumes_without_it(shallow, tmp_path, whole):
    path = tmp_path / "q.gguf"
    answer = lose(shallow, path, "all")
    assert re.fullmatch(
        r"--cluster tcp://\S+: lost the connection to it; \d+ tensors are kept, "
        "continue with --resume",
        answer["error"],
    )
    assert journal_path(partial_path(path)).exists()
    list(job(shallow, path, resume=True))
    assert path.read_bytes() == whole


@pytest.mark.slow
def test_local_processes_on_the_command_line_say_who_did_what(shallow, tmp_path, whole):
    path = tmp_path / "q.gguf"
    command = [sys.executable, "-m", "tqgguf", "quantize", shallow, "-o", path, "-v"]
    command += ["-t", "tq-q3", "--rotate", "fused", "--effort", "fast"]
    done = subprocess.run(
        [*command, "--cluster", "local:2"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("[")]
    assert len(lines) == 21
    assert all(" on tcp://127.0.0.1:" in line for line in lines)
    assert len({line.rpartition(" on ")[2] for line in lines}) == 2
    assert path.read_bytes() == whole


@pytest.mark.slow
def test_workers_need_no_tokenizer(novels, tmp_path):
    folder = write_folder(tmp_path / "hf")
    (folder / "tokenizer.model").unlink()
    command = [sys.executable, "-m", "tqgguf", "quantize", folder, "--vocab-from", novels]
    command += ["--effort", "fast"]
    for name, options in (("here", []), ("there", ["--cluster", "local:1"])):
        done = subprocess.run([*command, "-o", tmp_path / name, *options], cwd=ROOT, check=False)
        assert done.returncode == 0
    assert (tmp_path / "there").read_bytes() == (tmp_path / "here").read_bytes()


@pytest.mark.parametrize("address", ["here", "local:0", "local:x", "local:-2", ""])
def test_an_address_that_is_none(tmp_path, address):
    source = write_tiny(tmp_path / "m.gguf", "llama")
    if address:
        with pytest.raises(PlanError, match="is neither tcp://HOST:PORT nor local:N"):
            list(job(source, tmp_path / "q.gguf", machine=Machine(cluster=address)))
    else:
        assert len(list(job(source, tmp_path / "q.gguf", machine=Machine(cluster=address)))) > 0


@pytest.fixture
def nobody():
    """An address that is taken and not listened to."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"tcp://127.0.0.1:{taken.getsockname()[1]}"


def test_no_scheduler_is_said_in_time(tmp_path, nobody):
    source = write_tiny(tmp_path / "m.gguf", "llama")
    says = pytest.raises(ToolError, match=f"--cluster {nobody}: no scheduler with work")
    with says, dask.config.set({"distributed.comm.timeouts.connect": "1s"}):
        list(job(source, tmp_path / "q.gguf", machine=Machine(cluster=nobody)))
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


def test_a_scheduler_that_hangs_is_said_in_time(tmp_path):
    """The system takes connections for it. One that hangs later is waited for (docs/LOG.md)."""
    source = write_tiny(tmp_path / "m.gguf", "llama")
    with socket.create_server(("127.0.0.1", 0)) as hangs:
        address = f"tcp://127.0.0.1:{hangs.getsockname()[1]}"
        says = pytest.raises(ToolError, match="it takes connections, and says nothing for 100ms")
        with says, dask.config.set({"distributed.comm.timeouts.connect": "100ms"}):
            list(job(source, tmp_path / "q.gguf", machine=Machine(cluster=address)))
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


def test_calibrated_rows_are_copied_without_the_cluster(tmp_path, nobody):
    source, name = write_tiny(tmp_path / "m.gguf", "llama"), "blk.0.attn_q.weight"
    model = open_model(source)
    type = make_plan(model, Options(type="tq-q3", rotate="fused")).matrix_types[name]
    zeros = np.zeros_like(model.tensors[name].read())
    made = Calibrated({name: quantize(zeros, type)}, "text")
    list(job(source, tmp_path / "q.gguf", machine=Machine(cluster=nobody), calibrated=made))
    assert not open_model(tmp_path / "q.gguf").tensors[name].read().any()


def test_dask_is_not_needed_to_import_or_run_without_a_cluster():
    code = (
        "import sys, tqgguf.cli; sys.exit(any(m in sys.modules for m in ('distributed', 'dask')))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
