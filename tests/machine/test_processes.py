"""Processes in place of threads: the same bytes, and no accident leaves anything behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.processes import SLOW, alive, started, wait_for
from tests.tiny_models import write_tensors
from tqgguf.errors import WeightError
from tqgguf.machine.machine import Machine
from tqgguf.machine.processes import processes
from tqgguf.models import open_model
from tqgguf.output.files import partial_path
from tqgguf.output.journal import journal_path
from tqgguf.pipeline import convert, workers
from tqgguf.planning.plan import Options
from tqgguf.planning.planner import make_plan

ROOT = Path(__file__).parent.parent
SMALL = """
import tqgguf.pipeline.workers
tqgguf.pipeline.workers.WORTH_PROCESSES = 0
from tqgguf.cli import main
"""


def job(source, path, **options):
    model = open_model(source)
    return convert(
        model,
        make_plan(model, Options(type="tq-q3", rotate="fused", effort="fast")),
        path,
        **options,
    )


AS_JOB = ("-t", "tq-q3", "--rotate", "fused", "--effort", "fast")


def quantizing(shallow, path, *options, slow=""):
    """`tqgguf quantize` with processes for a small model too, in a session of its own."""
    command = [sys.executable, "-c", f"{SMALL}{slow}main()", "quantize", shallow, "-o", path]
    return started(
        [*command, *AS_JOB, "--quiet", "--threads", "2", *options],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def resumed(shallow, path):
    with quantizing(shallow, path, "--resume") as run:
        assert run.communicate(timeout=60) == (None, "")
    return path.read_bytes()


def count_records(path):
    journal = journal_path(partial_path(path))
    return len(journal.read_bytes().splitlines()) - 1 if journal.exists() else 0


def processes_below(pid):
    """Its children and theirs, oldest first."""
    return sorted(child.pid for child in psutil.Process(pid).children(recursive=True))


@pytest.fixture(scope="module")
def whole(shallow, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "q.gguf"
    list(job(shallow, path, machine=Machine(threads=1)))
    return path.read_bytes()


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(workers, "WORTH_PROCESSES", 0)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("threads", [2, 3])
def test_processes_change_nothing(shallow, tmp_path, whole, monkeypatch, threads):
    used = []
    start_processes = workers.start_processes
    monkeypatch.setattr(
        workers,
        "start_processes",
        lambda n, **k: used.append(n) or start_processes(n, **k),
    )
    path = tmp_path / "q.gguf"
    reports = list(job(shallow, path, machine=Machine(threads=threads, processes=True)))
    assert used == [threads]
    assert path.read_bytes() == whole
    expected = list(job(shallow, tmp_path / "t.gguf", machine=Machine(threads=1)))
    assert [(r.name, r.rel_mse) for r in reports] == [(r.name, r.rel_mse) for r in expected]


def test_a_process_multiplies_on_one_thread():
    before = os.environ.get("OPENBLAS_NUM_THREADS")
    with processes(1, preload=workers.__name__) as pool:
        assert pool.submit(os.getenv, "OPENBLAS_NUM_THREADS").result() == "1"
    assert os.environ.get("OPENBLAS_NUM_THREADS") == before


@pytest.mark.usefixtures("small")
def test_workers_that_began_in_another_folder_find_the_files(shallow, tmp_path, whole, monkeypatch):
    list(job(shallow, tmp_path / "first.gguf", machine=Machine(threads=2, processes=True)))
    monkeypatch.chdir(tmp_path)
    list(
        job(
            Path(os.path.relpath(shallow)),
            Path("q.gguf"),
            machine=Machine(threads=2, processes=True),
        )
    )
    assert (tmp_path / "q.gguf").read_bytes() == whole


@pytest.mark.usefixtures("small")
def test_where_memory_is_short_threads_do_the_work(shallow, tmp_path, whole, monkeypatch):
    monkeypatch.setattr(workers, "start_processes", None)
    path = tmp_path / "q.gguf"
    list(job(shallow, path, machine=Machine(threads=2, processes=True, max_memory=300 << 20)))
    assert path.read_bytes() == whole


@pytest.mark.usefixtures("small")
def test_a_bad_weight_is_named_as_ever(stories, tmp_path):
    tensors = {name: t.read() for name, t in open_model(stories).tensors.items()}
    tensors["blk.1.attn_q.weight"][3, 5:8] = np.nan
    source = write_tensors(tmp_path / "m.gguf", stories, tensors)
    with pytest.raises(WeightError, match=r"^blk\.1\.attn_q\.weight: 3 NaN and 0 infinite weights"):
        list(job(source, tmp_path / "q.gguf", machine=Machine(threads=2, processes=True)))
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_the_run_and_resume_finishes_it(shallow, tmp_path, whole, number):
    path = tmp_path / "q.gguf"
    with quantizing(shallow, path, slow=SLOW) as run:
        wait_for(lambda: count_records(path) > 0)
        crew = processes_below(run.pid)
        assert len(crew) >= 4  # the resource tracker, the fork server and two workers
        os.kill(run.pid, number) if number == signal.SIGKILL else os.killpg(run.pid, number)
        _, said = run.communicate(timeout=30)
    wait_for(lambda: not any(map(alive, crew)), seconds=10)
    if number != signal.SIGKILL:
        assert run.returncode == 128 + number
        assert said.count("\n") == 1
        assert said.startswith(f"{path}: interrupted")
    assert not path.exists()
    assert resumed(shallow, path) == whole


@pytest.mark.slow
def test_a_worker_that_dies_is_one_line(shallow, tmp_path, whole):
    path = tmp_path / "q.gguf"
    with quantizing(shallow, path, slow=SLOW) as run:
        wait_for(lambda: count_records(path) > 0)
        os.kill(processes_below(run.pid)[-1], signal.SIGKILL)
        _, said = run.communicate(timeout=30)
    assert run.returncode == 1
    assert "a worker process died" in said
    assert "tensors are kept, continue with --resume" in said
    assert said.count("\n") == 1
    assert not path.exists()
    assert resumed(shallow, path) == whole


def test_a_long_name_of_the_folder_for_temporary_files_does_no_harm(tmp_path):
    """The socket of what processes are forked from has a name of 107 bytes at most."""
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    script = (
        "from tqgguf.machine.processes import processes\n"
        "with processes(1, preload='tqgguf.machine.workers') as workers:\n"
        "    print(workers.submit(int).result())\n"
    )
    env = os.environ | {"TMPDIR": str(folder)}
    command = [sys.executable, "-c", script]
    ended = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert (ended.stdout, ended.stderr) == ("0\n", "")
