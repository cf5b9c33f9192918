"""llama-bench: prompt and decode speed, several models taking turns.

Speeds drift on a shared or warm machine, so models are measured in rounds, one short run of each,
every other round in reverse order, and the medians are compared.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tqgguf.errors import ToolError
from tqgguf.llamacpp.tools import ToolOutput, cause, run
from tqgguf.machine.folders import own_folder
from tqgguf.models.gguf import shard_files


@dataclass(frozen=True)
class Workload:
    """What each run measures: `prompt` tokens read at once, `generate` tokens decoded one by one.

    0 leaves a test out. Threads None: llama-bench's choice. GPU layers None: all that fit.
    """

    prompt: int = 128
    generate: int = 64
    threads: int | None = None
    gpu_layers: int | None = None

    def arguments(self) -> list[str]:
        """This workload as llama-bench's options."""
        options: dict[str, int | None] = {"-p": self.prompt, "-n": self.generate, "-r": 1}
        options |= {
            k: v for k, v in (("-t", self.threads), ("-ngl", self.gpu_layers)) if v is not None
        }
        return [str(part) for pair in options.items() for part in pair]


@dataclass(frozen=True)
class Sample:
    """One run of one model: tokens per second, and the weights as llama.cpp counts them."""

    model: str
    tensor_bytes: int
    weights: int
    pp: float | None
    tg: float | None


@dataclass(frozen=True)
class Speed:
    """Medians over rounds, in tokens per second; the ratios are to the first model's."""

    model: str
    tensor_bytes: int
    weights: int
    pp: float | None
    tg: float | None
    pp_ratio: float | None
    tg_ratio: float | None
    pp_range: tuple[float, float] | None
    tg_range: tuple[float, float] | None


def rounds(models: Sequence[Path], workload: Workload, *, count: int) -> Iterator[Sample]:
    """Run every model `count` times, interleaved; len(models) * count samples."""
    for turn in range(count):
        for model in models if turn % 2 == 0 else reversed(models):
            yield measure_speed(model, workload)


def measure_speed(model: Path, workload: Workload) -> Sample:
    """Run llama-bench once (after its own warm-up)."""
    with _without_commas(model) as path:
        output = run("llama-bench", "-m", path, "-o", "json", *workload.arguments())
    return parse(output, str(model))


@contextmanager
def _without_commas(model: Path) -> Iterator[Path]:
    """The model's path, or a link to it: llama-bench takes what follows a comma for another."""
    if "," not in str(model):
        yield model
        return
    with own_folder() as folder:
        for file in shard_files(model):
            (folder / file.name.replace(",", "_")).symlink_to(file.absolute())
        yield folder / model.name.replace(",", "_")


def parse(output: ToolOutput, model: str) -> Sample:
    """Read llama-bench's JSON for one model; ToolError if it is broken or incomplete."""
    try:
        tests = json.loads(output.stdout)
        speeds = {_kind(test): float(test["avg_ts"]) for test in tests}
        size, weights = int(tests[0]["model_size"]), int(tests[0]["model_n_params"])
    except (ValueError, LookupError, TypeError):
        raise ToolError(f"llama-bench: printed no usable JSON for {model}{cause(output)}") from None
    return Sample(model, size, weights, speeds.get("pp"), speeds.get("tg"))


def _kind(test: dict[str, Any]) -> str:
    return "tg" if test["n_gen"] else "pp"


def summarize(samples: Iterable[Sample]) -> list[Speed]:
    """Medians for each model, in the order in which models first appear."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.model, []).append(sample)
    columns = {name: ([s.pp for s in g], [s.tg for s in g]) for name, g in groups.items()}
    base = [_median(column) for column in next(iter(columns.values()))] if columns else []
    return [_speed(groups[name][0], *columns[name], *base) for name in groups]


def _speed(
    first: Sample,
    pp: list[float | None],
    tg: list[float | None],
    pp_base: float | None,
    tg_base: float | None,
) -> Speed:
    return Speed(
        model=first.model,
        tensor_bytes=first.tensor_bytes,
        weights=first.weights,
        pp=_median(pp),
        tg=_median(tg),
        pp_ratio=_ratio(_median(pp), pp_base),
        tg_ratio=_ratio(_median(tg), tg_base),
        pp_range=_range(pp),
        tg_range=_range(tg),
    )


def _measured(column: Iterable[float | None]) -> list[float]:
    return [value for value in column if value is not None]


def _median(column: Iterable[float | None]) -> float | None:
    values = _measured(column)
    return median(values) if values else None


def _range(column: Iterable[float | None]) -> tuple[float, float] | None:
    values = _measured(column)
    return (min(values), max(values)) if values else None


def _ratio(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base else None
