from pathlib import Path

import pytest

from tqgguf.errors import ToolError
from tqgguf.llamacpp import Divergence, Settings, ToolOutput, divergence
from tqgguf.llamacpp.perplexity import parse_divergence, parse_estimate

CAPTURES = Path(__file__).parent.parent / "data" / "llamacpp"


def test_real_statistics_are_read(capture):
    wanted = Divergence(
        ppl=26.468821,
        ppl_base=26.179388,
        kld_mean=0.00484,
        kld_p999=0.037963,
        kld_max=0.038396,
        same_top=93.307,
    )
    assert parse_divergence(capture("kl")) == wanted


def test_a_model_against_itself_has_undefined_errors_and_defined_statistics(capture):
    found = parse_divergence(capture("kl_self"))
    assert (found.kld_mean, found.kld_max, found.same_top) == (0.0, 6.2e-5, 100.0)


def test_the_estimate_is_read_from_the_log(capture):
    assert parse_estimate(capture("perplexity")) == 26.1793


def test_a_text_too_short_is_an_error_though_the_program_exits_0(capture):
    with pytest.raises(ToolError, match="no result: perplexity: you need at least 512 tokens"):
        parse_estimate(capture("perplexity_short"))


def test_a_truncated_base_is_an_error_though_the_program_exits_0(capture):
    with pytest.raises(ToolError, match="no result: kl_divergence: failed reading log-probs"):
        parse_divergence(capture("kl_truncated"))


@pytest.mark.parametrize("line", ["Mean PPL(Q)", "Mean    KLD", "99.9%   KLD", "Maximum", "Same"])
def test_any_missing_statistic_is_an_error(capture, line):
    kept = [text for text in capture("kl").stdout.splitlines() if not text.startswith(line)]
    with pytest.raises(ToolError, match="printed no result"):
        parse_divergence(ToolOutput("\n".join(kept), ""))


def test_nan_is_named(capture):
    text = capture("kl").stdout.replace("Mean PPL(Q)                   :  26.", "Mean PPL(Q) : nan")
    with pytest.raises(ToolError, match="computes NaN"):
        parse_divergence(ToolOutput(text, ""))
    with pytest.raises(ToolError, match="computes NaN"):
        parse_estimate(ToolOutput("", "Final estimate: PPL = -nan +/- -nan"))


def test_settings_become_options():
    assert Settings(context=256).arguments() == ["-c", "256"]
    full = Settings(context=64, chunks=3, threads=2, gpu_layers=0).arguments()
    assert full == ["-c", "64", "--chunks", "3", "-t", "2", "-ngl", "0"]


def script(tmp_path, *names):
    """Plays real captures, one per run, and counts the runs."""
    return f"""
        echo run >> {tmp_path}/runs
        name=$(echo {" ".join(names)} | cut -d' ' -f$(wc -l < {tmp_path}/runs))
        cat {CAPTURES}/$name.stdout
        cat {CAPTURES}/$name.stderr >&2
    """


def test_a_run_that_lost_its_last_lines_is_repeated(program, tmp_path, capture):
    program("llama-perplexity", script(tmp_path, "kl_lost", "kl"))
    found = divergence(tmp_path, tmp_path, Settings())
    assert found == parse_divergence(capture("kl"))
    assert (tmp_path / "runs").read_text().count("run") == 2


def test_repeating_ends(program, tmp_path):
    program("llama-perplexity", script(tmp_path, *["kl_lost"] * 9))
    with pytest.raises(ToolError, match=r"printed no result$"):
        divergence(tmp_path, tmp_path, Settings())
    assert (tmp_path / "runs").read_text().count("run") == 2


def test_a_run_that_said_why_it_failed_is_not_repeated(program, tmp_path):
    program("llama-perplexity", script(tmp_path, *["kl_truncated"] * 9))
    with pytest.raises(ToolError, match="failed reading log-probs for chunk 1"):
        divergence(tmp_path, tmp_path, Settings())
    assert (tmp_path / "runs").read_text().count("run") == 1
