import signal
import sys
from pathlib import Path

import pytest
from processes import alive, started, wait_for

from tqgguf.errors import ToolError
from tqgguf.llamacpp.tools import VERSION, ToolOutput, built_tools, cause, find, run

ROOT = Path(__file__).parent.parent.parent


def executable(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_programs_are_looked_for_in_llama_cpp_bin_then_path_then_the_cache(tmp_path, monkeypatch):
    monkeypatch.delenv("LLAMA_CPP_BIN", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    cached = executable(built_tools() / "llama-bench")
    assert find("llama-bench") == cached
    assert cached.parent == tmp_path / "tqgguf" / f"llama.cpp-{VERSION}" / "bin"
    on_path = executable(tmp_path / "path" / "llama-bench")
    assert find("llama-bench") == on_path
    chosen = executable(tmp_path / "chosen" / "llama-bench")
    monkeypatch.setenv("LLAMA_CPP_BIN", str(chosen.parent))
    assert find("llama-bench") == chosen


def test_a_missing_program_names_the_places_and_the_cure(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("LLAMA_CPP_BIN", raising=False)
    with pytest.raises(ToolError) as error:
        find("llama-bench")
    where = tmp_path / "tqgguf" / f"llama.cpp-{VERSION}" / "bin"
    wanted = f"llama-bench: not found in PATH or {where}; build it with: make llama.cpp"
    assert str(error.value) == wanted
    monkeypatch.setenv("LLAMA_CPP_BIN", "/nowhere")
    with pytest.raises(ToolError, match=r"not found in \$LLAMA_CPP_BIN \(/nowhere\); .*make llama"):
        find("llama-bench")


def test_output_and_arguments_pass_through(program, tmp_path):
    program("llama-bench", 'echo "out $1 $2"; echo "err ±" >&2')
    assert run("llama-bench", tmp_path, 3) == ToolOutput(f"out {tmp_path} 3\n", "err ±\n")


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("kill -ILL $$", r"llama-bench: killed by SIGILL; .* AMX; rebuild: make llama.cpp$"),
        ("kill -SEGV $$", r"llama-bench: killed by SIGSEGV; .*rebuild.*: make llama.cpp$"),
        ("kill -KILL $$", r"llama-bench: killed by SIGKILL; .*out of memory$"),
        ("kill -ABRT $$", r"llama-bench: killed by SIGABRT$"),
        ("exit 3", r"llama-bench: exited with status 3$"),
        ("echo 'x: error: no model' >&2; exit 1", r"exited with status 1: x: error: no model$"),
    ],
)
def test_a_failure_is_one_line(program, script, message):
    program("llama-bench", script)
    with pytest.raises(ToolError, match=message) as error:
        run("llama-bench")
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_program_is_reported(program):
    program("llama-bench", "").write_bytes(b"\x00\x01\x02")
    with pytest.raises(ToolError, match="cannot be run: Exec format error"):
        run("llama-bench")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("bench_missing", ": llama_bench: error: failed to load model 'nope.gguf'"),
        (
            "perplexity_short",
            ": perplexity: you need at least 512 tokens to evaluate perplexity "
            "with a context of 256",
        ),
        ("kl_truncated", ": kl_divergence: failed reading log-probs for chunk 1"),
        ("quantize_bad_type", ": llama_quantize: invalid ftype 'Q9'"),
        (
            "quantize_truncated",
            ": llama_model_quantize: failed to quantize: tensor 'token_embd.weight' data is not "
            "within the file bounds, model is corrupted or incomplete",
        ),
        ("kl", ""),
        ("bench", ""),
    ],
)
def test_the_first_error_that_a_real_program_printed_is_quoted(capture, name, text):
    assert cause(capture(name)) == text


PARENT = """
import sys
from tqgguf.llamacpp import run
try:
    run("llama-bench", sys.argv[1])
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM), (signal.SIGHUP, -signal.SIGHUP)],
)
def test_a_stopping_signal_leaves_no_child_running(program, tmp_path, number, status):
    program("llama-bench", 'sleep 60 & echo "$$ $!" > "$1.new"; mv "$1.new" "$1"; wait')
    note = tmp_path / "pids"
    with started([sys.executable, "-c", PARENT, note], cwd=ROOT) as parent:
        wait_for(note.exists)
        children = [int(pid) for pid in note.read_text().split()]
        assert all(map(alive, children))
        parent.send_signal(number)
        assert parent.wait(20) == status
    wait_for(lambda: not any(map(alive, children)))


def test_signal_handlers_are_put_back(program):
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    program("llama-bench", "exit 1")
    with pytest.raises(ToolError):
        run("llama-bench")
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before
