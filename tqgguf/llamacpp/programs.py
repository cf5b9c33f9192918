"""llama.cpp's other programs, one function each: quantize, imatrix, tokenize, generate."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from tqgguf.errors import ToolError
from tqgguf.llamacpp.tools import ToolOutput, ask, cause, run


def quantize_file(
    source: Path,
    target: Path,
    type: str,
    *,
    imatrix: Path | None = None,
    pure: bool = False,
    threads: int | None = None,
    options: Sequence[str] = (),
) -> None:
    """Write `source` as llama-quantize's `type` to `target`, which may hold an older file."""
    arguments: list[str] = [*options]
    arguments += ["--imatrix", str(imatrix)] if imatrix else []
    arguments += ["--pure"] if pure else []
    count = [str(threads)] if threads else []
    output = run("llama-quantize", *arguments, source, target, type, *count)
    if not target.is_file():
        raise ToolError(f"llama-quantize: wrote no {target}{cause(output)}")


def imatrix(
    model: Path,
    text: Path,
    target: Path,
    *,
    context: int = 512,
    chunks: int | None = None,
    threads: int | None = None,
) -> None:
    """Collect llama-imatrix's statistics of the model on the text and write them to `target`."""
    arguments = ["-m", str(model), "-f", str(text), "-o", str(target), "-c", str(context)]
    arguments += ["--chunks", str(chunks)] if chunks else []
    arguments += ["-t", str(threads)] if threads else []
    output = run("llama-imatrix", *arguments)
    if not target.is_file():
        raise ToolError(f"llama-imatrix: wrote no {target}{cause(output)}")


def tokenize(
    model: Path,
    text: Path,
    *,
    bos: bool = True,
    special: bool = False,
    meanwhile: Callable[[], object] = lambda: None,
) -> list[int]:
    """The text's token ids by the model's tokenizer.

    `special`: read `<|...|>` in the text as control tokens. `meanwhile`: called as soon as the
    program runs.
    """
    arguments = ["-m", str(model), "-f", str(text), "--ids", "--log-disable"]
    arguments += [] if bos else ["--no-bos"]
    arguments += [] if special else ["--no-parse-special"]
    return parse_ids(ask("llama-tokenize", *arguments, start="[", meanwhile=meanwhile))


def parse_ids(output: ToolOutput) -> list[int]:
    """Read the list that llama-tokenize --ids prints."""
    try:
        return [int(token) for token in json.loads(output.stdout)]
    except (ValueError, TypeError):
        raise ToolError(f"llama-tokenize: printed no list of ids{cause(output)}") from None


def generate(model: Path, prompt: str, *, tokens: int, threads: int | None = None) -> str:
    """Continue the prompt greedily; returns the new text only."""
    arguments = ["-m", str(model), "-p", prompt, "-n", str(tokens), "--temp", "0"]
    arguments += ["-no-cnv", "--no-display-prompt", "--simple-io"]
    arguments += ["-t", str(threads)] if threads else []
    return run("llama-completion", *arguments).stdout.strip()
