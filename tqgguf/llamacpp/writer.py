"""Have a model write a text: data to calibrate on, in whatever languages it was made for.

By llama-completion if it is installed, else by the llama.cpp inside the wheel of xllamacpp, in a
process of its own. Tokens are drawn as llama.cpp draws them by default, from a seed.
"""

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from tqgguf.errors import ToolError
from tqgguf.llamacpp.tools import find, run, run_module
from tqgguf.machine.folders import own_folder


def write_passages(
    model: Path, starts: Sequence[str], *, tokens: int, threads: int | None = None
) -> tuple[list[str], str]:
    """A passage of about `tokens` tokens from each start, and the name of who wrote them.

    The seed of a passage is its index. Raises ToolError where neither program is installed, or
    llama.cpp cannot run the model.
    """
    try:
        find("llama-completion")
    except ToolError as error:
        if find_spec("xllamacpp") is None:
            cure = "install xllamacpp: pip install 'tqgguf[llama]'"
            raise ToolError(f"{error}, or {cure}") from None
        return _by_wheel(model, starts, tokens), "xllamacpp"
    passages = [
        start + _by_program(model, start, tokens, seed, threads)
        for seed, start in enumerate(starts)
    ]
    return passages, "llama-completion"


def _by_program(model: Path, start: str, tokens: int, seed: int, threads: int | None) -> str:
    arguments = ["-m", str(model), "-p", start, "-n", str(tokens), "-c", str(2 * tokens)]
    arguments += ["--seed", str(seed), "--ignore-eos", "-no-cnv", "--no-display-prompt"]
    arguments += ["--simple-io", *(["-t", str(threads)] if threads else [])]
    return run("llama-completion", *arguments).stdout


def _by_wheel(model: Path, starts: Sequence[str], tokens: int) -> list[str]:
    with own_folder() as folder:
        asked, answer = folder / "starts.json", folder / "passages.json"
        asked.write_text(json.dumps(list(starts)))
        run_module("tqgguf.llamacpp.wheel_writer", model, asked, answer, tokens)
        found: list[str] = json.loads(answer.read_text())
    return found
