"""tqgguf.measure.bench: rows from samples; the files it makes with real llama.cpp."""

import pytest

from tqgguf import llamacpp
from tqgguf.llamacpp import Sample, Workload
from tqgguf.measure import bench as benchmark
from tqgguf.measure.bench import tabulate
from tqgguf.models import open_model
from tqgguf.pipeline import convert
from tqgguf.planning.plan import Options
from tqgguf.planning.planner import make_plan


def make(source, target, **options):
    model = open_model(source)
    for _ in convert(model, make_plan(model, Options(**{"rotate": "fused"} | options)), target):
        pass
    return target


def test_an_untied_head_counts_as_a_cost(novels, stories, tmp_path):
    """The folded file stores more weights than the tied one; its bits are divided by the fewer."""
    untied = make(novels, tmp_path / "untied.gguf", type="q4_k")
    sizes = {novels: (1000, 500), untied: (300, 600), stories: (40, 10)}
    samples = [Sample(str(path), *size, 1.0, 2.0) for path, size in sizes.items()]
    tied_row, untied_row, other_row = tabulate(samples)
    assert (tied_row.bpw, untied_row.bpw, other_row.bpw) == (16.0, 4.8, 32.0)
    assert tied_row.bytes == novels.stat().st_size
    assert untied_row.tg_ratio == 1.0


@pytest.mark.tools
def test_files_are_made_and_measured(shallow, cache):
    assert benchmark.baseline(shallow, "f16") == shallow
    theirs = benchmark.baseline(shallow, "q4_0")
    made = theirs.stat().st_mtime_ns
    assert benchmark.baseline(shallow, "Q4_0").stat().st_mtime_ns == made
    own = benchmark.ours(shallow, "tq-q2")
    assert (theirs.name, own.name) == ("shallow-2m-Q4_0.gguf", "shallow-2m-TQ-Q2.gguf")
    made = own.stat().st_mtime_ns
    assert benchmark.ours(shallow, "TQ-Q2").stat().st_mtime_ns == made
    next(cache.rglob("*.made")).write_text("other code")
    assert benchmark.ours(shallow, "tq-q2").stat().st_mtime_ns > made
    assert not list(cache.rglob("*.partial"))
    work = Workload(prompt=8, generate=4, threads=1)
    rows = tabulate(llamacpp.rounds([theirs, own], work, count=2))
    assert [row.model for row in rows] == [str(theirs), str(own)]
    assert rows[0].tg_ratio == 1.0
    assert rows[1].tg_ratio == pytest.approx(rows[1].tg / rows[0].tg)
    for row in rows:
        assert row.tg_range[0] <= row.tg <= row.tg_range[1]
        assert row.pp > 0
    assert rows[0].bpw == pytest.approx(5.03, abs=0.01)
