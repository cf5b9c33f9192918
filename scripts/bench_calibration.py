"""Calibration beside llama-imatrix and llama-quantize: time, scaling over processes, divergence.

Both get the same tokens of one text and are judged on another. For each model our run is repeated
with 1, 2, ... processes, each time with an empty cache; the files must be the same byte for byte.
`share` is the processor seconds of the fewest processes over the clock's seconds times the
processes: 1 is perfect scaling. Of more than the first number of tokens only the most processes
run. Use a machine that does nothing else.

    make bench-calibration
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import measuring
from measuring import Usage

from tqgguf.llamacpp import Settings
from tqgguf.llamacpp.tools import find
from tqgguf.machine.threads import default_threads
from tqgguf.measure import eval as evaluate

DATA = Path(__file__).parents[1] / "tests" / "data"


@dataclass(frozen=True)
class Line:
    """One way to a file: who made it, on how many processors, what it took and what it lost."""

    name: str
    workers: int
    usage: Usage
    n_bytes: int
    kld: float


def main() -> None:
    """Parse the arguments, measure, print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("calibration", type=Path, help="text to calibrate on")
    parser.add_argument("text", type=Path, help="text to be judged on")
    parser.add_argument("--tokens", default="8192,65536", help="how many: 8192,65536")
    parser.add_argument("--chunks", type=int, default=16, help="of the text, to be judged on")
    parser.add_argument("--type", default="q4_0")
    parser.add_argument("--theirs", default="Q4_0")
    parser.add_argument("--workers", default=_all_workers(), help="how many processes: 1,2,4")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    counts = [int(n) for n in args.workers.split(",")]
    for at, n_tokens in enumerate(int(n) for n in args.tokens.split(",")):
        with TemporaryDirectory(prefix="tqgguf-") as folder:
            lines = list(_lines(args, n_tokens, counts[-1:] if at else counts, Path(folder)))
        if args.json:
            said = [vars(line) | {"usage": line.usage._asdict()} for line in lines]
            print(json.dumps({"tokens": n_tokens, "lines": said}))
        else:
            _say(args.model, n_tokens, lines)


def _all_workers() -> str:
    """1, 2, 4, ... and all of the machine's processors."""
    count, powers = default_threads(), [1]
    while powers[-1] * 2 < count:
        powers.append(powers[-1] * 2)
    return ",".join(map(str, dict.fromkeys([*powers, count])))


def _lines(
    args: argparse.Namespace, n_tokens: int, counts: Sequence[int], folder: Path
) -> Iterator[Line]:
    context = evaluate.default_context(args.model)
    settings = Settings(context, args.chunks)
    original = evaluate.prepare_original(args.model, args.text, settings)
    made = [_theirs(args, n_tokens // context, context, folder)]
    made += [_ours(args, n_tokens, count, folder) for count in counts]
    first = made[1][0].read_bytes()
    for path, _, usage in made[2:]:
        if path.read_bytes() != first:
            raise SystemExit(f"{path.name}: other bytes than those of one process ({usage})")
    for path, workers, usage in [made[0], *made[1:]]:
        row = evaluate.measure_quality(original, path, settings)
        yield Line(path.stem, workers, usage, row.bytes, row.kld_mean)


def _theirs(
    args: argparse.Namespace, chunks: int, context: int, folder: Path
) -> tuple[Path, int, Usage]:
    """llama-imatrix on as many tokens, then llama-quantize, on all processors."""
    matrix, path, threads = folder / "imatrix.gguf", folder / "llama.cpp.gguf", default_threads()
    options = ["-c", str(context), "--chunks", str(chunks), "-t", str(threads)]
    take = [str(find("llama-imatrix")), "-m", str(args.model), "-f", str(args.calibration)]
    first = measuring.run([*take, "-o", str(matrix), *options])
    make = [str(find("llama-quantize")), "--imatrix", str(matrix), "--pure", str(args.model)]
    second = measuring.run([*make, str(path), args.theirs, str(threads)])
    return path, threads, _sum(first, second)


def _ours(
    args: argparse.Namespace, n_tokens: int, workers: int, folder: Path
) -> tuple[Path, int, Usage]:
    """Tqgguf quantize --calibrate with an empty cache."""
    path, cache = folder / f"tqgguf-{workers}.gguf", folder / f"cache-{workers}"
    command = [sys.executable, "-m", "tqgguf", "quantize", str(args.model), "-o", str(path)]
    command += ["--type", args.type, "--rotate", "none", "--threads", str(workers), "--quiet"]
    command += ["--calibrate", str(args.calibration), "--calibrate-tokens", str(n_tokens)]
    programs = str(find("llama-quantize").parent)
    env = os.environ | {"XDG_CACHE_HOME": str(cache), "LLAMA_CPP_BIN": programs}
    return path, workers, measuring.run(command, env=env)


def _sum(one: Usage, other: Usage) -> Usage:
    return Usage(
        one.seconds + other.seconds,
        max(one.peak, other.peak),
        max(one.own, other.own),
        one.processor + other.processor,
    )


def _say(model: Path, n_tokens: int, lines: Sequence[Line]) -> None:
    useful, theirs = lines[1].usage.processor, lines[0].usage.seconds
    print(f"{model.name}, {n_tokens:,} tokens, {lines[1].n_bytes:,} bytes of ours")
    print("| made by | processes | s | to llama.cpp | processor s | share | MiB | bytes | KLD |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for line in lines:
        used = line.usage
        share = f"{useful / used.seconds / line.workers:.2f}" if line is not lines[0] else ""
        print(
            f"| {line.name} | {line.workers} | {used.seconds:.1f} | {used.seconds / theirs:.2f} "
            f"| {used.processor:.1f} | {share} | {used.own / 2**20:,.0f} | {line.n_bytes:,} "
            f"| {line.kld:.5f} |"
        )


if __name__ == "__main__":
    main()
