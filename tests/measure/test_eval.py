"""tqgguf.measure.eval against real llama.cpp; the arithmetic that needs none, without it."""

import json
import os
from contextlib import suppress

import pytest

from tqgguf import llamacpp
from tqgguf.errors import FileFormatError, ToolError
from tqgguf.llamacpp import NoResultError, Settings, Speed
from tqgguf.llamacpp.logits import perplexity
from tqgguf.machine.cache import prune
from tqgguf.machine.content import content_key
from tqgguf.measure import eval as evaluate
from tqgguf.measure.eval import QualityRow, mark_pareto
from tqgguf.models import open_model
from tqgguf.pipeline import convert
from tqgguf.planning.plan import Options
from tqgguf.planning.planner import make_plan

SHORT = Settings(context=64, chunks=4, threads=1)


def make(source, target, **options):
    model = open_model(source)
    for _ in convert(model, make_plan(model, Options(**{"rotate": "fused"} | options)), target):
        pass
    return target


def row(bytes, kld, tg=None):
    return QualityRow("m", bytes, 4.5, 9.0, kld, kld, kld, 90.0, tg=tg)


@pytest.mark.parametrize(
    ("rows", "best"),
    [
        ([(10, 0.1), (20, 0.05)], "YY"),
        ([(10, 0.1), (20, 0.1), (20, 0.2)], "Y.."),
        ([(10, 0.1), (10, 0.1)], "YY"),
        ([(10, 0.1, 5.0), (20, 0.2, 6.0)], "YY"),
        ([(10, 0.1, 6.0), (20, 0.2, 6.0)], "Y."),
        ([], ""),
    ],
)
def test_a_row_is_best_unless_another_is_as_good_in_all_and_better_in_one(rows, best):
    marked = mark_pareto([row(*values) for values in rows])
    assert "".join("Y" if r.pareto else "." for r in marked) == best


def test_speed_joins_a_row():
    speed = Speed("m", 9, 16, 5.0, 3.0, 1.0, 1.0, (5.0, 5.0), (3.0, 3.0))
    joined = evaluate.with_speed(row(10, 0.1), speed)
    assert (joined.pp, joined.tg) == (5.0, 3.0)


def test_the_key_follows_contents_and_settings_not_names(tmp_path):
    one, same, other = (tmp_path / name for name in ("one.gguf", "same.gguf", "other.gguf"))
    one.write_bytes(b"1")
    same.write_bytes(b"1")
    other.write_bytes(b"2")
    assert content_key([one], 1) == content_key([same], 1)
    assert len({content_key([one], 1), content_key([one], 2), content_key([other], 1)}) == 3


def test_a_folder_is_refused_with_the_way_to_convert_it(tmp_path):
    with pytest.raises(FileFormatError, match=r"convert it first with: tqgguf quantize .* --type"):
        evaluate.default_context(tmp_path)


def test_the_least_recently_used_predictions_go_first(tmp_path):
    for age, name in enumerate(["new", "old", "older"]):
        for suffix, size in ((".kld", 10), (".ppl", 1)):
            path = tmp_path / f"{name}{suffix}"
            path.write_bytes(bytes(size))
            os.utime(path, (1000 - age, 1000 - age))
    prune(tmp_path, keep="old", limit=22)
    assert {p.name for p in tmp_path.iterdir()} == {"new.kld", "new.ppl", "old.kld", "old.ppl"}


@pytest.mark.tools
@pytest.mark.usefixtures("cache")
def test_a_fold_changes_no_prediction(shallow, text, tmp_path):
    """The proof of the rotation: 32-bit weights, folded or not, compute the same function."""
    plain = make(shallow, tmp_path / "plain.gguf", type="f32", rotate="none")
    folded = make(shallow, tmp_path / "folded.gguf", type="f32", rotate="fused")
    damaged = make(shallow, tmp_path / "q8.gguf", type="q8_0", rotate="none")
    same, worse = evaluate.evaluate(plain, [folded, damaged], text, SHORT)
    assert same.kld_max <= 1e-5
    assert same.kld_max < worse.kld_max / 20
    assert worse.kld_mean > 1e-5


@pytest.mark.tools
@pytest.mark.usefixtures("cache")
def test_our_own_arithmetic_repeats_llama_perplexity(shallow, text, tmp_path):
    quant = make(shallow, tmp_path / "q2.gguf", type="q2_k")
    base = evaluate.prepare_original(shallow, text, SHORT)
    theirs = printed_divergence(quant, base)
    own = evaluate._own_divergence(base, quant, SHORT)
    assert theirs.kld_max > evaluate.NOISE
    assert theirs.ppl_base == pytest.approx(perplexity(base.base), rel=1e-5)
    assert theirs.ppl == pytest.approx(own.ppl, rel=1e-3)
    assert theirs.kld_mean == pytest.approx(own.kld_mean, rel=2e-3)
    assert theirs.kld_p999 == pytest.approx(own.kld_p999, rel=2e-2)
    assert theirs.kld_max == pytest.approx(own.kld_max, rel=2e-3)
    assert theirs.same_top == pytest.approx(own.same_top, abs=1.0)


def printed_divergence(quant, base):
    """llama-perplexity's own statistics, however often it loses them."""
    while True:
        with suppress(NoResultError):
            return llamacpp.divergence(quant, base.base, SHORT)


@pytest.mark.tools
def test_lost_statistics_are_computed_from_the_files(shallow, text, cache, tmp_path, monkeypatch):
    """A program that computes like llama-perplexity and always loses what it prints."""
    quant = make(shallow, tmp_path / "q2.gguf", type="q2_k")
    wanted = evaluate.evaluate(shallow, [quant], text, SHORT)[0]
    silent = tmp_path / "llama-perplexity"
    silent.write_text(f'#!/bin/sh\n{llamacpp.find("llama-perplexity")} "$@" >/dev/null 2>&1\n')
    silent.chmod(0o755)
    monkeypatch.setenv("LLAMA_CPP_BIN", str(tmp_path))
    found = evaluate.evaluate(shallow, [quant], text, SHORT)[0]
    assert found.ppl == pytest.approx(wanted.ppl, rel=1e-3)
    assert found.kld_mean == pytest.approx(wanted.kld_mean, rel=2e-3)
    assert len(list((cache / "logits").glob("*.kld"))) == 2


@pytest.mark.tools
def test_predictions_are_computed_once(shallow, text, cache):
    first = evaluate.prepare_original(shallow, text, SHORT)
    (stored,) = (cache / "logits").glob("*.kld")
    assert first.base == stored
    made = stored.stat().st_ino
    assert evaluate.prepare_original(shallow, text, SHORT) == first
    assert stored.stat().st_ino == made
    assert not list((cache / "logits").glob("*.partial"))


@pytest.mark.tools
def test_what_was_measured_of_the_same_bytes_is_known(shallow, text, cache, tmp_path):
    quant = make(shallow, tmp_path / "q2.gguf", type="q2_k")
    (measured,) = evaluate.evaluate(shallow, [quant], text, SHORT)
    (kept,) = (cache / "divergences").iterdir()
    kept.write_text(json.dumps(json.loads(kept.read_text()) | {"kld_max": 7.5}))
    (again,) = evaluate.evaluate(shallow, [quant.rename(tmp_path / "moved.gguf")], text, SHORT)
    assert (again.kld_mean, again.kld_max) == (measured.kld_mean, 7.5)
    other = make(shallow, tmp_path / "q3.gguf", type="q3_k")
    assert evaluate.evaluate(shallow, [other], text, SHORT)[0].kld_max != 7.5


@pytest.mark.slow
@pytest.mark.tools
def test_what_is_kept_and_damaged_is_measured_anew(shallow, text, cache, tmp_path):
    quant = make(shallow, tmp_path / "q2.gguf", type="q2_k")
    measured = evaluate.evaluate(shallow, [quant], text, SHORT)
    for path in sorted(cache.glob("logits/*")) + sorted(cache.glob("divergences/*")):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        assert evaluate.evaluate(shallow, [quant], text, SHORT) == measured
        assert path.stat().st_size == len(whole)


@pytest.mark.tools
def test_a_short_text_is_an_error_and_leaves_nothing(shallow, cache, tmp_path):
    text = tmp_path / "short.txt"
    text.write_text("It was the best of times.\n")
    with pytest.raises(ToolError, match=r"(need at|is it at) least 128 tokens"):
        evaluate.prepare_original(shallow, text, SHORT)
    assert list((cache / "logits").iterdir()) == []


@pytest.mark.tools
def test_predictions_cut_short_by_a_full_disk_are_not_kept(
    shallow, text, cache, tmp_path, monkeypatch
):
    """llama-perplexity ignores failed writes and reports success."""
    real, cutting = llamacpp.find("llama-perplexity"), tmp_path / "llama-perplexity"
    cutting.write_text(
        f'#!/bin/sh\n{real} "$@"\nfor f in {cache}/logits/*.partial; do\n'
        "  [ -e $f ] && truncate -s -9 $f\ndone\nexit 0\n"
    )
    cutting.chmod(0o755)
    monkeypatch.setenv("LLAMA_CPP_BIN", str(tmp_path))
    with pytest.raises(ToolError, match=r"do not hold 124 predictions; is the disk full\?"):
        evaluate.prepare_original(shallow, text, SHORT)
    assert not list((cache / "logits").glob("*.kld"))
