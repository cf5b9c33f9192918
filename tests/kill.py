"""Kill quantizing processes with SIGKILL at random moments and finish their work with --resume.

Run as a script, `python -m tests.kill MODEL FOLDER COUNT SEED`: it forks a child per kill, so that
the children need no second to import. Prints a JSON list, one object per kill.
"""

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from tqgguf import pipeline
from tqgguf.machine.machine import Machine
from tqgguf.models import open_model
from tqgguf.output import files
from tqgguf.output.files import partial_path, shard_paths
from tqgguf.output.journal import journal_path
from tqgguf.output.layout import Split
from tqgguf.pipeline import output_files
from tqgguf.planning.plan import Options
from tqgguf.planning.planner import make_plan

SPLITS = [Split(), Split(max_tensors=8)]


def convert(source: Path, path: Path, split: Split, **options: bool) -> int:
    """Quantize on one thread; the number of tensors that were reported."""
    model = open_model(source)
    plan = make_plan(model, Options(type="tq-q3", rotate="fused", effort="fast"))
    return sum(
        1
        for _ in pipeline.convert(
            model, plan, path, machine=Machine(threads=1), split=split, **options
        )
    )


def digest(source: Path, path: Path, split: Split) -> str:
    """One hash over all files of an output."""
    model = open_model(source)
    hasher = hashlib.sha256()
    for file in output_files(
        model, make_plan(model, Options(type="tq-q3", rotate="fused")), path, split
    ):
        hasher.update(file.read_bytes())
    return hasher.hexdigest()


def start(source: Path, path: Path, split: Split) -> int:
    """Quantize in a child process; its id."""
    pid = os.fork()
    if pid == 0:
        files._SYNC_SHARE = 0  # on a slow disk a run this short would note all tensors at once
        convert(source, path, split, force=True)
        os._exit(0)
    return pid


def records(path: Path) -> int:
    """How many tensors the journal of an unfinished output tells of."""
    journal = journal_path(partial_path(path))
    return max(0, len(journal.read_bytes().splitlines()) - 1) if journal.exists() else 0


def is_running(pid: int) -> bool:
    """Whether a child is at work; one that has ended stays to be waited for."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def kill_once(
    source: Path, path: Path, split: Split, after: int, delay: float
) -> dict[str, object]:
    """Kill a run `delay` seconds after so many tensors, resume it, and say what was found."""
    pid = start(source, path, split)
    while is_running(pid) and records(path) < after:
        time.sleep(0.001)
    time.sleep(delay)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    recorded = records(path)
    finished = [p.exists() for p in shard_paths(path, 3 if split else None)]
    reported = convert(source, path, split, resume=True)
    return {
        "after": after,
        "delay": delay,
        "recorded": recorded,
        "finished": all(finished),
        "reported": reported,
        "digest": digest(source, path, split),
        "left": sorted(p.name for p in path.parent.iterdir() if "partial" in p.name),
    }


def remove(folder: Path) -> None:
    """Empty a folder."""
    for file in folder.iterdir():
        file.unlink()


def main() -> None:
    """Measure an undisturbed run, then kill `count` others at moments spread over their work."""
    source, folder, count, seed = Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:5])
    path, rng = folder / "out.gguf", random.Random(seed)
    whole, seconds = [], 0.0
    for split in SPLITS:
        began = time.perf_counter()
        os.waitpid(start(source, path, split), 0)
        seconds = max(seconds, time.perf_counter() - began)
        whole.append(digest(source, path, split))
        remove(folder)
    kills = []
    for i in range(count):
        kind = i % len(SPLITS)
        after, delay = rng.randrange(21), rng.uniform(0, seconds / 20)
        kills.append(kill_once(source, path, SPLITS[kind], after, delay))
        kills[-1]["identical"] = kills[-1].pop("digest") == whole[kind]
        remove(folder)
    print(json.dumps(kills, indent=1))  # noqa: T201


if __name__ == "__main__":
    main()
