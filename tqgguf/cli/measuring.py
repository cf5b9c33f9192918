"""What `tqgguf bench` and `tqgguf eval` share: options, files to measure, rounds of llama-bench."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from tqgguf import llamacpp
from tqgguf.cli.console import progress
from tqgguf.llamacpp import Sample, Workload
from tqgguf.measure import bench as benchmark

Baselines = Annotated[
    str, typer.Option(metavar="TYPES", help="Add llama-quantize's of the first: Q4_0,Q4_K_M.")
]
Types = Annotated[
    str, typer.Option(metavar="TYPES", help="Add ours of the first: tq-q4,tq-q3, any type.")
]
Rounds = Annotated[int, typer.Option(min=1, help="Rounds of the benchmark; medians count.")]
GpuLayers = Annotated[
    int | None, typer.Option("--gpu-layers", min=0, help="Layers on the GPU; llama.cpp's choice.")
]
Plot = Annotated[Path | None, typer.Option(help="Also draw the result: a .png, .svg or .pdf file.")]


def make_files(
    source: Path, baselines: str, types: str, *, threads: int | None, quiet: bool
) -> list[Path]:
    """llama-quantize's and our files of a model, kept in the user's cache, in the order asked."""
    wanted = [(benchmark.baseline, name) for name in names(baselines)]
    wanted += [(benchmark.ours, name) for name in names(types)]
    files = []
    with progress(len(wanted), "files", unit="file", quiet=quiet) as bar:
        for make, name in wanted:
            files.append(make(source, name, threads=threads))
            bar.update()
    return files


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
