"""Whole runs of `tqgguf quantize` against `llama-quantize --pure`: wall time and peak memory.

A synthetic F16 Llama of 0.5 or 3.2 billion parameters, or a file that is given, is quantized by
both programs, which take turns, each in a process of its own; ours with --effort fast, which like
theirs looks at nothing but the weights. For each type and way to rotate: the medians of seconds,
the median ratio of neighbouring runs and its bar, the ratio of the processors' seconds (which says
more on a busy machine), how many processors were busy with ours, and its peak resident memory, all
processes summed. With 16 threads and files in memory, a few minutes:

    python scripts/bench_quantize.py --threads 16 --folder /dev/shm
    python scripts/bench_quantize.py --threads 16 --folder /dev/shm --size 3.2b --rounds 1
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import measuring

from tqgguf.llamacpp.tools import find

HERE = Path(__file__).parent
SIZES = {"0.5b": [], "3.2b": ["--hidden", "3072", "--ffn", "8192", "--vocab", "48000"]}
RUNS = ["Q4_K:auto", "Q4_K:fused", "Q4_0:none", "Q4_0:auto", "Q3_K:none", "Q3_K:auto"]
BARS = {"Q4_K": 0.5}  # of theirs; 1 for other types


def main() -> None:
    """Parse the arguments, measure and print."""
    parser = argparse.ArgumentParser(description="tqgguf quantize against llama-quantize")
    parser.add_argument("--runs", nargs="+", default=RUNS, metavar="TYPE:ROTATION")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", choices=SIZES, default="0.5b")
    parser.add_argument("--model", type=Path, help="this file in the place of a synthetic one")
    parser.add_argument("--folder", type=Path, help="where the files are written, /dev/shm say")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        model = args.model or synthetic(Path(folder) / "synthetic-f16.gguf", args.size)
        output = Path(folder) / "out.gguf"
        rows = []
        for run in args.runs:
            type, _, rotate = run.partition(":")
            rows.append(compare(model, output, type, rotate, args.threads, args.rounds))
            if not args.json:
                print_row(rows[-1], first=len(rows) == 1)
    if args.json:
        print(json.dumps({"threads": args.threads, "size": args.size, "rows": rows}, indent=2))


def synthetic(path: Path, size: str) -> Path:
    """Write the random model of a size."""
    script = [sys.executable, str(HERE / "make_synthetic_model.py"), str(path), *SIZES[size]]
    subprocess.run(script, check=True, stdout=subprocess.DEVNULL)
    return path


def compare(
    model: Path, output: Path, type: str, rotate: str, threads: int, rounds: int
) -> dict[str, str | float]:
    """Alternate both programs; medians of seconds and of their ratio, our peak memory and load."""
    ours = [sys.executable, "-m", "tqgguf", "quantize", str(model), "-o", str(output), "--force"]
    ours += ["-t", type, "--rotate", rotate, "--effort", "fast", "--quiet"]
    ours += ["--threads", str(threads)]
    theirs = [str(find("llama-quantize")), "--pure", str(model), str(output), type, str(threads)]
    runs = [(measuring.run(ours), measuring.run(theirs)) for _ in range(rounds)]
    return {
        "type": type,
        "rotate": rotate,
        "seconds": statistics.median(mine.seconds for mine, _ in runs),
        "seconds_ggml": statistics.median(other.seconds for _, other in runs),
        "ratio": statistics.median(mine.seconds / other.seconds for mine, other in runs),
        "bar": BARS.get(type, 1.0),
        "ratio_processor": statistics.median(a.processor / b.processor for a, b in runs),
        "busy": statistics.median(mine.processor / mine.seconds for mine, _ in runs),
        "peak_mib": max(mine.peak for mine, _ in runs) / 2**20,
    }


def print_row(row: dict[str, str | float], *, first: bool) -> None:
    """Print a row of the table, with its head above the first."""
    if first:
        heads = ["type", "rotation", "tqgguf, s", "llama-quantize, s", "ratio", "bar"]
        heads += ["ratio of processor time", "busy", "peak, MiB"]
        print(f"| {' | '.join(heads)} |\n|---|---|{'--:|' * (len(heads) - 2)}")
    print(
        f"| {row['type']} | {row['rotate']} | {row['seconds']:.2f} | {row['seconds_ggml']:.2f} | "
        f"{row['ratio']:.2f} | {row['bar']:.1f} | {row['ratio_processor']:.2f} | "
        f"{row['busy']:.1f} | {row['peak_mib']:.0f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
