"""What does it cost to hand out work, and how much of it does the machine do at once?

Rounds of tasks that do nothing, done by processes; then matrix products of each for itself, which
share nothing but the machine: so many times what the first number of processes does is the most
that calibration can gain from more of them.

python scripts/bench_crew.py 2 16
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from tqgguf.calibration import work
from tqgguf.calibration.bench import Bench
from tqgguf.calibration.desk import Desk
from tqgguf.calibration.kept import Kept
from tqgguf.machine.crew import separate_processes

SECONDS = 2.0  # of products
TENSORS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def main() -> None:
    """Print a line for each number of processes, and one for each kind of round."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("processes", type=int, nargs="+")
    parser.add_argument("--rounds", type=int, default=200)
    args = parser.parse_args()
    speeds: list[float] = []
    with TemporaryDirectory() as folder:
        for count in args.processes:
            speeds.append(measure(bench(Path(folder)), count, args.rounds))
            print(f"  products: {speeds[-1]:.0f} GFLOP/s, {speeds[-1] / speeds[0]:.2f} times")


def bench(folder: Path) -> Bench:
    """What tasks of a calibration are given."""
    edges = tuple(range(0, 8193, 512))
    todo = frozenset(TENSORS)
    return Bench(Desk(folder), edges, Kept(folder), True, 3, TENSORS, todo)


def nothing(*_: object) -> None:
    """A task."""


def multiply() -> float:
    """GFLOP/s of products like those of a layer."""
    x, w = (np.ones((rows, 576), np.float32) for rows in (512, 3072))
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < SECONDS:
        x @ w.T
        done += 1
    return done * 2 * x.size * len(w) / 1e9 / (time.perf_counter() - began)


def measure(given: Bench, count: int, rounds: int) -> float:
    """Time rounds of a task for each process, and of four; GFLOP/s of products by all."""
    began = time.perf_counter()
    with separate_processes(count, preload=work.__name__) as crew:
        crew.run([partial(nothing, given)] * count)
        print(f"{count} processes: begun in {time.perf_counter() - began:.2f} s")
        for at_home, size in product((True, False), (count, 4 * count)):
            tasks = [partial(nothing, given, 0)] * size
            name = "at home" if at_home else "anywhere"
            say(name, size, rounds, partial(crew.run, tasks, at_home=at_home))
        return sum(crew.run([multiply] * count))


def say(name: str, size: int, rounds: int, run: Callable[[], object]) -> None:
    """Print what a round takes, and what of that is this process' work."""
    began, busy = time.perf_counter(), time.process_time()
    for _ in range(rounds):
        run()
    wall, cpu = time.perf_counter() - began, time.process_time() - busy
    print(
        f"  {name}, {size} tasks: {wall / rounds * 1e3:.2f} ms, "
        f"{cpu / rounds / size * 1e6:.0f} us of our processor a task"
    )


if __name__ == "__main__":
    main()
