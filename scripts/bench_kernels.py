"""Our encoders against ggml's: error and speed of every block type on the same Gaussian rows.

ggml's ggml_quantize_chunk is called in this process (the xllamacpp wheel exports it) in both of its
modes: by default, which is fast for many types, and with an imatrix of ones, the setting in which
it searches and minimises its best error; ours uses plain least squares. All run on one thread,
taking turns; the best of the rounds counts, in CPU seconds of the thread, so that other processes
disturb less. The last columns are the wall time of one thread over that of
two threads, and over that of two processes, which is what `tqgguf quantize` uses on large models.
"Q4_0, fast" is the encoder of `--effort fast`. Types that take ggml long have fewer rows.

    make bench-kernels                      # a few minutes; writes the table of docs/types.md
    PYTHONPATH=.:tests python scripts/bench_kernels.py Q4_K IQ4_XS --rows 512 --json
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path

import ggml
import numpy as np

from tqgguf.formats import FORMATS, dequantize, quantize
from tqgguf.kernels.dtypes import F32, U8
from tqgguf.kernels.metrics import rate_distortion_gap_db, relative_mse
from tqgguf.machine.processes import processes
from tqgguf.machine.threads import single_threaded_blas

N_IN = 4096
FEW, MANY = 512, 2048  # rows
SLOW = 60e6  # weights a second, below which a few rows take long enough
FAST = ", fast"


@dataclass(frozen=True)
class Row:
    """Relative MSE, its distance from the rate-distortion limit, millions of weights a second."""

    type: str
    bpw: float
    mse: float
    mse_ggml: float
    mse_ggml_default: float | None
    gap_db: float
    speed: float
    speed_ggml_default: float | None
    ratio_default: float | None
    speed_ggml: float
    ratio: float
    threads: float
    processes: float


def main() -> None:
    """Parse the arguments, measure and print."""
    parser = argparse.ArgumentParser(description="Our encoders against ggml's")
    parser.add_argument("types", nargs="*", help="types to measure (default: all block types)")
    parser.add_argument("--rows", type=int, help=f"rows of {N_IN} weights; default {MANY} or {FEW}")
    parser.add_argument("--rounds", type=int, default=3, help="alternations; the best counts")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.add_argument("--write", type=Path, help="put the table in the place of this file's")
    args = parser.parse_args()
    if args.write and args.types:
        parser.error("--write puts a table of all types in the file; name none")
    names = args.types or [name for name, fmt in FORMATS.items() if fmt.block_size > 1]
    names += [name + FAST for name in names if FORMATS[name].quick]
    names.sort(key=lambda name: (-FORMATS[name.removesuffix(FAST)].bits_per_weight, name))
    if not args.json:
        print(HEADER)
    rows = []
    with processes(2, preload="tqgguf.formats") as pool:
        for name in names:
            n_rows = args.rows or enough_rows(name.removesuffix(FAST))
            rows.append(measure(n_rows, name, args.rounds, pool))
            if not args.json:
                print(line(rows[-1]), flush=True)
    if args.json:
        print(json.dumps({"rows": [asdict(row) for row in rows]}, indent=2))
    if args.write:
        replace_table(args.write, [HEADER, *map(line, rows)])


def enough_rows(name: str) -> int:
    """Few of a type that takes ggml long."""
    x = gaussian(64)
    ggml.quantize(x[:1], name, np.ones(N_IN, np.float32))  # builds its tables
    seconds, _ = timed(lambda: ggml.quantize(x, name, np.ones(N_IN, np.float32)))
    return FEW if x.size / seconds < SLOW else MANY


def replace_table(path: Path, table: list[str]) -> None:
    """Put a table in the place of the one in this file whose header begins alike."""
    text = path.read_text()
    begin = text.index(HEADER[: HEADER.index("error")])
    end = text.index("\n\n", begin)
    path.write_text(text[:begin] + "\n".join(table) + text[end:])


@cache
def gaussian(rows: int) -> F32:
    """The weights, (rows, N_IN) float32 of N(0, 1)."""
    return np.random.default_rng(0).standard_normal((rows, N_IN), dtype=np.float32)


def measure(n_rows: int, name: str, rounds: int, pool: Executor) -> Row:
    """Encode the same weights by both, ggml in both of its modes, taking turns."""
    x, label, quick = gaussian(n_rows), name, name.endswith(FAST)
    name = name.removesuffix(FAST)
    ones = np.ones(N_IN, np.float32)
    ggml.quantize(x[:1], name, ones)  # builds its tables
    encoders = {
        "ours": lambda: quantize(x, name, quick=quick, threads=1),
        "ggml": lambda: ggml.quantize(x, name, ones),
    }
    if name not in ggml.NEEDS_IMPORTANCE:
        encoders["default"] = lambda: ggml.quantize(x, name)
    seconds, data = taking_turns(encoders, rounds)
    mse, bpw = relative_mse(x, dequantize(data["ours"], name, N_IN)), FORMATS[name].bits_per_weight
    theirs = {
        mode: relative_mse(x, ggml.dequantize(data[mode], name)) for mode in data if mode != "ours"
    }
    speed = {mode: x.size / seconds[mode] / 1e6 for mode in seconds}
    return Row(
        label,
        bpw,
        mse,
        theirs["ggml"],
        theirs.get("default"),
        rate_distortion_gap_db(mse, bpw),
        speed["ours"],
        speed.get("default"),
        speed["ours"] / speed["default"] if "default" in speed else None,
        speed["ggml"],
        speed["ours"] / speed["ggml"],
        *gains(n_rows, name, rounds, pool, quick=quick),
    )


def taking_turns(
    encoders: Mapping[str, Callable[[], U8]], rounds: int
) -> tuple[dict[str, float], dict[str, U8]]:
    """The best CPU seconds of each, and its result."""
    seconds, data = dict.fromkeys(encoders, float("inf")), {}
    for _ in range(rounds):
        for mode, encode in encoders.items():
            spent, data[mode] = timed(encode)
            seconds[mode] = min(seconds[mode], spent)
    return seconds, data


def timed(encode: Callable[[], U8]) -> tuple[float, U8]:
    """CPU seconds of this thread, and the result."""
    began = time.thread_time()
    data = encode()
    return time.thread_time() - began, data


def gains(
    n_rows: int, name: str, rounds: int, pool: Executor, *, quick: bool
) -> tuple[float, float]:
    """Wall time of one thread over that of two threads, and of two processes, the best of each."""
    best = dict.fromkeys(("one", "threads", "processes"), float("inf"))
    for _ in range(rounds + 1):  # the first makes the weights in the processes
        for crew in best:
            began = time.perf_counter()
            if crew == "processes":
                list(pool.map(partial(encode_half, n_rows, name, quick), (0, 1)))
            else:
                threads = 1 if crew == "one" else 2
                quantize(gaussian(n_rows), name, quick=quick, threads=threads)
            best[crew] = min(best[crew], time.perf_counter() - began)
    return best["one"] / best["threads"], best["one"] / best["processes"]


def encode_half(n_rows: int, name: str, quick: bool, half: int) -> None:
    """What one of two processes does."""
    x = gaussian(n_rows)
    with single_threaded_blas():
        part = x[half * n_rows // 2 : (half + 1) * n_rows // 2]
        quantize(part, name, quick=quick, threads=1)


HEADER = (
    "| type | bits per weight | error | ggml | ggml, imatrix | gap, dB | Mweights/s "
    "| ggml | ratio | ggml, imatrix | ratio | 2 threads | 2 processes |\n"
    "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
)


def line(row: Row) -> str:
    """One row of a Markdown table."""
    return (
        f"| {row.type} | {row.bpw:.4g} | {row.mse:.4g} | {shown(row.mse_ggml_default, '.4g')} "
        f"| {row.mse_ggml:.4g} | {row.gap_db:.2f} | {row.speed:.1f} "
        f"| {shown(row.speed_ggml_default, '.1f')} | {shown(row.ratio_default, '.1f', 'x')} "
        f"| {row.speed_ggml:.1f} | {row.ratio:.1f}x | {row.threads:.2f}x | {row.processes:.2f}x |"
    )


def shown(value: float | None, form: str, unit: str = "") -> str:
    """A figure, or a dash where ggml has none."""
    return "-" if value is None else f"{value:{form}}{unit}"


if __name__ == "__main__":
    main()
