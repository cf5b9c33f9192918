"""What `tqgguf bench` and `tqgguf eval` share: options, files to measure, rounds of llama-bench."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from tqgguf import llamacpp
from tqgguf.cli.console import progress
from tqgguf.llamacpp import Sample, Settings, Workload
from tqgguf.measure import bench as benchmark
from tqgguf.measure import eval as evaluate

ROUNDS = 3  # unless --rounds says otherwise

ContextSize = Annotated[
    int | None,
    typer.Option("--ctx", min=8, metavar="N", help="Tokens a chunk; 512 or the model's if unset."),
]
Chunks = Annotated[int | None, typer.Option(min=1, metavar="N", help="Read only so many chunks.")]
AlsoBench = Annotated[bool, typer.Option("--bench", help="Measure the speed too.")]
Rounds = Annotated[
    int, typer.Option(min=1, metavar="N", help="Rounds of the benchmark; medians count.")
]
GpuLayers = Annotated[
    int | None,
    typer.Option(
        "--gpu-layers", min=0, metavar="N", help="Layers on the GPU; llama.cpp's choice if unset."
    ),
]
Plot = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Also draw the result: a .png, .svg or .pdf file."),
]


@dataclass(frozen=True)
class Added:
    """Files to compare with, which are made of the first model."""

    baselines: Annotated[
        str, typer.Option(metavar="TYPES", help="Add llama-quantize's of the first: Q4_0,Q4_K_M.")
    ] = ""
    types: Annotated[
        str, typer.Option(metavar="TYPES", help="Add ours of the first: tq-q4,tq-q3, any type.")
    ] = ""

    def __bool__(self) -> bool:
        return bool(names(self.baselines) or names(self.types))

    def make(self, source: Path, *, threads: int | None, quiet: bool) -> list[Path]:
        """llama-quantize's and our files of a model, from the user's cache if they are there."""
        wanted = [(benchmark.baseline, name) for name in names(self.baselines)]
        wanted += [(benchmark.ours, name) for name in names(self.types)]
        files = []
        with progress(len(wanted), "files", unit="file", quiet=quiet) as bar:
            for make, name in wanted:
                files.append(make(source, name, threads=threads))
                bar.update()
        return files


class Measuring:
    """What follows from how a text is cut into chunks, and whether speed is measured."""

    context: int | None
    chunks: int | None
    bench: bool
    rounds: int

    def settings(
        self, original: Path, threads: int | None, gpu_layers: int | None = None
    ) -> Settings:
        """How llama-perplexity is to read the text."""
        context = self.context or evaluate.default_context(original)
        return Settings(context, self.chunks, threads, gpu_layers)

    def check_rounds(self) -> None:
        """Refuse rounds of what is not measured."""
        if not self.bench and self.rounds != ROUNDS:
            raise typer.BadParameter("--rounds counts those of --bench; add that")


def run_rounds(
    files: Sequence[Path], workload: Workload, *, rounds: int, quiet: bool
) -> list[Sample]:
    """Measure the files in turn, every one `rounds` times."""
    samples = []
    with progress(rounds * len(files), "speed", unit="run", quiet=quiet) as bar:
        for sample in llamacpp.rounds(files, workload, count=rounds):
            samples.append(sample)
            bar.update()
    return samples


def names(types: str) -> list[str]:
    """The names in a list separated by commas."""
    return [name.strip() for name in types.split(",") if name.strip()]
