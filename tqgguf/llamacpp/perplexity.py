"""llama-perplexity: how far a model's predictions are from another's on a text.

The base model's run stores its tokens and log-probabilities (16 bits each) in a file; the other
models are then measured on those same tokens.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tqgguf.errors import ToolError
from tqgguf.llamacpp.logits import open_logits, perplexity
from tqgguf.llamacpp.tools import ToolOutput, cause, run

NUMBER = r"\s*([-+]?(?:\d+\.?\d*(?:e[-+]?\d+)?|nan|inf))"
STATISTICS = {
    "ppl": r"Mean PPL\(Q\)\s*:" + NUMBER,
    "ppl_base": r"Mean PPL\(base\)\s*:" + NUMBER,
    "kld_mean": r"Mean\s+KLD:" + NUMBER,
    "kld_p999": r"99\.9%\s+KLD:" + NUMBER,
    "kld_max": r"Maximum KLD:" + NUMBER,
    "same_top": r"Same top p:" + NUMBER,
}


ATTEMPTS = 2
Result = TypeVar("Result")


class NoResultError(ToolError):
    """The program ended with status 0 and printed no result; it may have said why.

    llama.cpp logs from a thread that dies with the program: on a busy machine the last lines may
    be lost, results and errors alike. What it writes to files is complete.
    """

    def __init__(self, output: ToolOutput) -> None:
        super().__init__(f"llama-perplexity: printed no result{cause(output)}")
        self.explained = bool(cause(output))


class NotFiniteError(ToolError):
    """The program's result is NaN or Inf."""


@dataclass(frozen=True)
class Settings:
    """How a text is cut: `context` tokens a chunk, at most `chunks` of them (None: all)."""

    context: int = 512
    chunks: int | None = None
    threads: int | None = None
    gpu_layers: int | None = None

    def arguments(self) -> list[str]:
        """These settings as llama-perplexity's options."""
        options = {"-c": self.context, "--chunks": self.chunks}
        options |= {"-t": self.threads, "-ngl": self.gpu_layers}
        return [str(part) for pair in options.items() if pair[1] is not None for part in pair]


@dataclass(frozen=True)
class Divergence:
    """A model against a base: perplexities, KL divergence in nats, same top token in per cent."""

    ppl: float
    ppl_base: float
    kld_mean: float
    kld_p999: float
    kld_max: float
    same_top: float


def write_base(model: Path, text: Path, base: Path, settings: Settings) -> float:
    """Store the model's predictions on the text in `base`; returns its perplexity.

    Only the second half of each chunk is predicted from. The file takes 2 bytes per prediction and
    vocabulary entry. Where the last lines of the output were lost, the perplexity comes from the
    file: exact but for tokens less likely than e^-16 of the likeliest, which count as e^-16. Raises
    ToolError, with nothing promised about `base`.
    """
    wanted = ["-m", str(model), "-f", str(text), "--kl-divergence-base", str(base)]
    output = run("llama-perplexity", *wanted, *settings.arguments())
    try:
        ppl = parse_estimate(output)
    except NoResultError as error:
        if error.explained:
            raise
        ppl = None
    _check_predictions(base, text, settings)
    return perplexity(base) if ppl is None else ppl


def _check_predictions(base: Path, text: Path, settings: Settings) -> None:
    """Refuse a file that is not there or not whole; llama-perplexity itself does not look."""
    if not base.is_file() or not base.stat().st_size:
        raise ToolError(
            f"llama-perplexity: predicted nothing of {text}; "
            f"is it at least {2 * settings.context} tokens long?"
        )
    try:
        open_logits(base)
    except ToolError as error:
        raise ToolError(f"llama-perplexity: {error}; is the disk full?") from None


def divergence(model: Path, base: Path, settings: Settings) -> Divergence:
    """Measure a model on the tokens in `base`, against the predictions in it."""
    wanted = ["-m", str(model), "--kl-divergence", "--kl-divergence-base", str(base)]
    return _measured(parse_divergence, [*wanted, *settings.arguments()])


def parse_estimate(output: ToolOutput) -> float:
    """The final perplexity; ToolError if there is none (llama-perplexity then still exits 0)."""
    return _number(r"Final estimate: PPL =" + NUMBER, output)


def parse_divergence(output: ToolOutput) -> Divergence:
    """The closing statistics of a --kl-divergence run; ToolError if any is missing."""
    return Divergence(**{name: _number(pattern, output) for name, pattern in STATISTICS.items()})


def _measured(parse: Callable[[ToolOutput], Result], arguments: list[str]) -> Result:
    """Run until the result is printed: an exiting llama.cpp now and then loses its last lines."""
    for _ in range(ATTEMPTS - 1):
        output = run("llama-perplexity", *arguments)
        try:
            return parse(output)
        except NoResultError as error:
            if error.explained:
                raise
    return parse(run("llama-perplexity", *arguments))


def _number(pattern: str, output: ToolOutput) -> float:
    found = re.search(pattern, output.stdout) or re.search(pattern, output.stderr)
    if not found:
        raise NoResultError(output)
    value = float(found[1])
    if not math.isfinite(value):
        raise NotFiniteError("llama-perplexity: the model computes NaN; its file is damaged")
    return value
