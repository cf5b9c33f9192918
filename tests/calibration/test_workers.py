"""Whoever does the work, and however many they are, the bytes are the same."""

import os
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import count, product
from shutil import copytree
from threading import Event

import numpy as np
import pytest

from tests.network.graphs import write_graph
from tests.network.small_models import N_VOCAB, RECIPES, write_model
from tests.processes import wait_for
from tqgguf.calibration import work
from tqgguf.calibration.cached import _Experts, calibrate_model
from tqgguf.calibration.calibrate import calibrate
from tqgguf.calibration.desk import Sizes, open_desk
from tqgguf.calibration.kept import Kept
from tqgguf.calibration.resources import resources, threads_of_passes
from tqgguf.calibration.settings import Feedback
from tqgguf.errors import OutputError, PlanError, ToolError, WeightError
from tqgguf.machine import crew as crews
from tqgguf.machine.crew import Crew
from tqgguf.machine.machine import Machine
from tqgguf.models.gguf import read_gguf
from tqgguf.models.metadata import encode
from tqgguf.network import forward
from tqgguf.planning.plan import Options
from tqgguf.planning.planner import make_plan
from tqgguf.rotation.rotation import NO_ROTATION

ONE_SWEEP = Feedback(sweeps=1)
TOKENS = np.random.default_rng(1).integers(3, N_VOCAB, (64, 32)).astype(np.int32)


def opened(folder, name):
    return read_gguf(write_model(folder / "model.gguf", RECIPES[name]))


def rounded(model, settings=ONE_SWEEP, tokens=TOKENS, **who):
    plan = make_plan(model, Options(type="q4_0", rotate="none"))
    return dict(calibrate(model, plan.matrix_types, tokens, settings, **who))


def same(one, other):
    return list(one) == list(other) and all(np.array_equal(one[n], other[n]) for n in one)


@pytest.fixture(scope="module")
def processes():
    """Processes take their time to start."""
    with crews.separate_processes(3, preload="tqgguf.calibration.work") as found:
        yield found


@pytest.mark.slow
@pytest.mark.usefixtures("two_blas_threads")
@pytest.mark.parametrize("name", ["llama-tied-llama3-rope", "qwen2moe", "gpt2"])
@pytest.mark.parametrize("memory", [1 << 30, 0])
def test_threads_and_processes_give_the_same_bytes(tmp_path, processes, name, memory):
    model, settings = opened(tmp_path, name), Feedback(sweeps=1, memory=memory)
    alone = rounded(model, settings=settings, crew=Crew())
    for size in (2, 3):
        some = Crew(processes.workers[:size])
        assert same(rounded(model, settings=settings, crew=some, kept=Kept(tmp_path)), alone)
        with crews.threads(size) as threads:
            assert same(rounded(model, settings=settings, crew=threads), alone)


@pytest.mark.parametrize("name", ["gemma3-pattern", "deepseek2", "qwen3next"])
def test_processes_know_other_graphs(tmp_path, processes, name):
    model = read_gguf(write_graph(tmp_path / "model.gguf", name))
    alone = rounded(model, tokens=TOKENS[:12], crew=Crew())
    assert same(rounded(model, tokens=TOKENS[:12], crew=processes), alone)


@pytest.mark.slow
def test_a_cluster_gives_the_same_bytes(tmp_path):
    model = opened(tmp_path, "llama-tied-llama3-rope")
    alone = rounded(model, crew=Crew())
    with crews.cluster_workers("local:2") as workers:
        assert len(workers.workers) == 2
        assert same(rounded(model, crew=workers, desks=tmp_path), alone)


def test_an_error_in_a_process_is_the_callers(processes):
    with pytest.raises(ZeroDivisionError):
        processes.run([int, _fail, int])
    assert processes.run([int] * 9) == [0] * 9


def _fail():
    return 1 // 0


def test_who_lives_on_lets_go_of_what_a_stopped_run_has_left(tmp_path, processes):
    model = read_gguf(write_graph(tmp_path / "post-norm.gguf", "gemma2"))
    types = make_plan(model, Options(type="q4_0", rotate="none")).matrix_types
    stopped = calibrate(model, types, TOKENS, ONE_SWEEP, crew=processes, desks=tmp_path)
    while not _held_by(processes):
        next(stopped)
    stopped.close()
    assert _held_by(processes)
    rounded(opened(tmp_path, "llama"), crew=processes)  # which holds nothing itself
    assert not _held_by(processes)


def _held_by(processes):
    return sum(processes.run([_count_held] * 3, at_home=True))


def _count_held():
    return len(work._held)


def test_who_is_at_home_stays_the_same(processes):
    first, second = (processes.run([os.getpid] * 7, at_home=True) for _ in range(2))
    assert first == second
    assert len(set(first)) == 3


@pytest.mark.parametrize(
    ("name", "reader"),
    [("llama", "blk.1.attn_q.weight"), ("llama-tied-llama3-rope", "token_embd.weight")],
)
def test_activations_that_are_no_numbers_are_named(tmp_path, name, reader):
    model = opened(tmp_path, name)
    broken = model.tensors["blk.1.attn_norm.weight"]
    rows = {broken.name: broken.derived(lambda a, b: np.full((b - a, broken.n_in), np.nan, "f4"))}
    damaged = type(model)(**{**vars(model), "tensors": {**model.tensors, **rows}})
    with pytest.raises(WeightError, match=rf"^{reader}: on this text .* NaN or Inf"):
        rounded(damaged, crew=Crew())


def test_a_desk_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    model = opened(tmp_path, "llama")
    with pytest.raises(OutputError, match="calibration needs room for its arrays: set XDG_CACHE"):
        rounded(model, crew=Crew(), desks=tmp_path / "file" / "desks")


@pytest.mark.parametrize("room", [0, 3000, 10_000, 70_000])
def test_a_disk_that_is_full_is_one_line_and_nothing_is_left(tmp_path, room):
    model = opened(tmp_path, "llama")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        with pytest.raises(OutputError, match=r"too large; calibration needs room .* XDG_CACHE"):
            rounded(model, crew=Crew(), desks=tmp_path / "desks")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list((tmp_path / "desks").iterdir())


def test_rows_are_put_by_several(tmp_path):
    whole = np.arange(28, dtype=np.float32).reshape(7, 4)
    with open_desk(tmp_path) as desk:
        desk.put("x", np.zeros((9, 9)))  # what lay there before
        for begin, end in ((4, 7), (0, 3), (3, 4)):
            desk.put_rows("x", whole[begin:end], begin, 7)
        assert np.array_equal(desk.get("x"), whole)


def test_a_desk_is_written_over_in_place_and_gone_in_the_end(tmp_path):
    with open_desk(tmp_path) as desk:
        desk.put("a", np.arange(6, dtype=np.float32).reshape(2, 3))
        view = desk.get("a")
        desk.put("a", view + 1)
        assert np.array_equal(view, [[1, 2, 3], [4, 5, 6]])  # the same pages
        desk.put("a", np.empty((0, 3), np.uint8))
        assert desk.get("a").shape == (0, 3)
        desk.make("b", (4, 5))[1] = 7
        assert desk.get("b").sum() == 35
    assert not list(tmp_path.iterdir())


def test_files_that_somebody_has_removed_are_one_line(tmp_path):
    with open_desk(tmp_path) as desk:
        desk.put("x", np.zeros(3))
        (desk.folder / "x").unlink()
        with pytest.raises(OutputError, match="somebody has removed files that a calibration"):
            desk.get("x")


def test_nobody_puts_anything_on_a_desk_that_is_gone(tmp_path):
    gone = Event()

    def put_many():
        with suppress(OutputError):
            for number in count():
                if gone.is_set():
                    return
                desk.put(f"x.{number % 99}", np.zeros(9))

    with ThreadPoolExecutor(1) as another:
        with open_desk(tmp_path) as desk:
            another.submit(put_many)
            wait_for(lambda: len(list(desk.folder.glob("x.*"))) == 99)
        gone.set()
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "gemma2", "llama-moe"])
def test_the_desk_takes_no_more_of_the_disk_than_was_said(tmp_path, name):
    model = read_gguf(write_graph(tmp_path / "model.gguf", name))
    types = make_plan(model, Options(type="q4_0", rotate="none")).matrix_types
    tokens = np.resize(TOKENS, (64, 64))
    peak = 0
    for _ in calibrate(model, types, tokens, Feedback(sweeps=0), crew=Crew(), desks=tmp_path / "d"):
        files = [path.stat() for path in (tmp_path / "d").glob("*/*")]
        peak = max(peak, sum(512 * file.st_blocks for file in files))
    assert 0.25 < peak / resources(model, types, tokens.shape).disk <= 1


def test_the_desks_of_the_dead_are_removed_and_of_nobody_else(tmp_path):
    died = (
        "import os, sys, pathlib; from tqgguf.calibration.desk import open_desk\n"
        "with open_desk(pathlib.Path(sys.argv[1])) as desk: os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", died, str(tmp_path)], check=False)
    (left,) = tmp_path.iterdir()
    another = copytree(left, tmp_path / f"another{left.name}")  # a host's of another name
    made = copytree(left, tmp_path / f"{left.name}made")  # somebody is about to lock it
    next(made.iterdir()).write_text("")
    halfway = copytree(left, tmp_path / f"{left.name}-gone")  # killed while it was removed
    next(halfway.iterdir()).rename(halfway / "x")
    with open_desk(tmp_path) as first, open_desk(tmp_path) as desk:
        assert {*tmp_path.iterdir()} == {another, made, first.folder, desk.folder}
    assert {*tmp_path.iterdir()} == {another, made}


def test_experts_that_see_few_tokens_are_reported_and_rounded(tmp_path):
    model, seen = opened(tmp_path, "llama-moe"), {}
    few = TOKENS[:1, :8]
    plan = make_plan(model, Options(type="q4_0", rotate="none"))
    for _ in calibrate(model, plan.matrix_types, few, ONE_SWEEP, on_experts=seen.__setitem__):
        pass
    counts = seen["blk.0.ffn_gate_exps.weight"]
    assert sum(counts) == few.size * model.get("{arch}.expert_used_count")
    experts = _Experts()
    for name, found in seen.items():
        experts.saw(name, found)
    layers, each = len({name.split(".")[1] for name in seen}), len(counts)
    (note,) = experts.notes()
    assert note.startswith(f"{layers * each} of {layers * each} experts saw fewer than 256 tokens")


def test_heads_of_a_latent_attention_are_no_experts():
    experts = _Experts()
    experts.saw("blk.0.attn_k_b.weight", [8, 8, 8, 8])
    assert experts.notes() == ()


def test_experts_that_see_enough_are_not_worth_a_word():
    experts = _Experts()
    experts.saw("blk.0.ffn_gate_exps.weight", [256, 9000])
    assert experts.notes() == ()


def test_a_memory_that_is_too_small_says_how_much_is_needed(tmp_path):
    model = opened(tmp_path, "llama")
    plan = make_plan(model, Options(type="q4_0", rotate="none"))
    with pytest.raises(PlanError, match=r"--max-memory 200 MiB is too little .* needs \d+ MiB"):
        resources(model, plan.matrix_types, (100, 32), Machine(max_memory=200 << 20))


def test_memory_bounds_the_threads_of_a_short_pass(novels):
    model = read_gguf(novels)
    much, little = (threads_of_passes(model, Machine(8, m << 20), 256) for m in (4096, 310))
    assert (much, little) == (8, 2)
    assert threads_of_passes(model, Machine(8), 256) == 8
    assert threads_of_passes(model, Machine(8, 310 << 20), 256, layers=10) == 1
    with pytest.raises(PlanError, match=r"100 MiB is too little .* needs 2\d\d MiB; --effort fast"):
        threads_of_passes(model, Machine(8, 100 << 20), 256)


def test_less_memory_means_fewer_workers_and_nothing_held(tmp_path):
    model = opened(tmp_path, "llama-moe")
    types = make_plan(model, Options(type="q4_0", rotate="none")).matrix_types
    much, little = (
        resources(model, types, (1 << 14, 512), Machine(8, memory << 20))
        for memory in (1 << 16, 500)
    )
    assert (much.workers, much.held > 0) == (8, True)
    assert little.workers < 8
    assert little.held == 0
    assert little.memory <= 500 << 20


def test_what_many_experts_take_is_within_the_memory_that_is_allowed(tmp_path):
    small = opened(tmp_path, "llama-moe")
    types = make_plan(small, Options(type="q4_0", rotate="none")).matrix_types
    wide = {n: replace(t, shape=_wider(t.shape, 256)) for n, t in small.tensors.items()}
    width = encode(256 * small.get("{arch}.embedding_length"))
    more = {"llama.embedding_length": width, "llama.expert_used_count": encode(4)}
    model, most = replace(small, metadata={**small.metadata, **more}, tensors=wide), 0
    inputs = sum(wide[f"blk.0.ffn_{which}_exps.weight"].n_in for which in ("up", "down"))
    ample = resources(model, types, (8, 512), Machine(1, 1 << 40))
    assert ample.held > 4 * 8 * 512 * 4 * inputs  # of every token at its four experts
    for memory, workers in product((8, 12, 20, 40, 80), (1, 3, 16)):
        found = resources(model, types, (8, 512), Machine(workers, memory << 30))
        assert found.memory <= memory << 30
        at_once = min(found.factors, found.workers, wide["blk.0.ffn_gate_inp.weight"].n_rows)
        assert (
            found.memory >= found.held + at_once * 2 * 4 * max(t.n_in for t in wide.values()) ** 2
        )
        most = max(most, at_once)
    assert most > 2


def test_what_is_cut_for_memory_alone_changes_nothing(tmp_path, monkeypatch):
    model, looked_up, embed = opened(tmp_path, "llama-moe"), [], forward.embed
    whole = rounded(model, crew=Crew())
    monkeypatch.setattr(forward, "embed", lambda m, t: looked_up.append(t.size) or embed(m, t))
    monkeypatch.setattr(work, "_BLENDED", 7)
    assert same(rounded(model, crew=Crew(), sizes=Sizes(looked_up=1024)), whole)
    assert set(looked_up) == {1024}


def _wider(shape, times):
    """Rows and columns, but not experts, are so many times as many."""
    return tuple(n * times if n > 8 else n for n in shape)


@pytest.mark.parametrize("accident", [KeyboardInterrupt(), ToolError("a worker is lost")])
def test_a_calibration_that_ends_early_says_what_is_kept_and_goes_on(
    tmp_path, monkeypatch, accident
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = opened(tmp_path, "llama-tied-llama3-rope")
    types = make_plan(model, Options(type="q4_0", rotate="none")).matrix_types
    done = []

    def end(size):
        done.append(size)
        if len(done) == 5:
            raise accident

    def run(**options):
        return calibrate_model(model, NO_ROTATION, types, TOKENS, settings=ONE_SWEEP, **options)

    with pytest.raises(type(accident), match="; 5 matrices are kept, and the same command goes on"):
        run(advance=end)
    assert not list((tmp_path / "cache" / "tqgguf" / "desks").iterdir())
    assert same(run().rows, rounded(model))


def test_a_cache_that_cannot_be_made_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    model = opened(tmp_path, "llama")
    types = make_plan(model, Options(type="q4_0", rotate="none")).matrix_types
    with pytest.raises(OutputError, match="calibration keeps its results there: set XDG_CACHE"):
        calibrate_model(model, NO_ROTATION, types, TOKENS)


def test_a_worker_that_dies_is_one_line():
    with (
        pytest.raises(ToolError, match="a worker process died, perhaps for lack of memory"),
        crews.separate_processes(2, preload="tqgguf.calibration.work") as crew,
    ):
        crew.run([partial(os._exit, 1), os.getpid])
