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

from tqgguf.models import open_model
from tqgguf.output.files import partial_path, shard_paths
from tqgguf.output.journal import journal_path
from tqgguf.output.layout import Split
from tqgguf.pipeline import output_files, quantize
from tqgguf.planning.plan import Options, make_plan

SPLITS = [Split(), Split(max_tensors=20)]


def convert(source: Path, path: Path, split: Split, **options: bool) -> int:
    """Quantize on one thread; the number of tensors that were reported."""
    model = open_model(source)
    plan = make_plan(model, Options(type="tq-q3"))
    return sum(1 for _ in quantize(model, plan, path, threads=1, split=split, **options))


def digest(source: Path, path: Path, split: Split) -> str:
    """One hash over all files of an output."""
    model = open_model(source)
    hasher = hashlib.sha256()
    for file in output_files(model, make_plan(model, Options(type="tq-q3")), path, split):
        hasher.update(file.read_bytes())
    return hasher.hexdigest()


def start(source: Path, path: Path, split: Split) -> int:
    """Quantize in a child process; its id."""
    pid = os.fork()
    if pid == 0:
        convert(source, path, split, force=True)
        os._exit(0)
    return pid


def kill_once(source: Path, path: Path, split: Split, delay: float) -> dict[str, object]:
    """Kill one run after `delay` seconds, resume it, and describe what was found."""
    pid = start(source, path, split)
    time.sleep(delay)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    journal = journal_path(partial_path(path))
    recorded = max(0, len(journal.read_bytes().splitlines()) - 1) if journal.exists() else 0
    finished = [p.exists() for p in shard_paths(path, 3 if split else None)]
    reported = convert(source, path, split, resume=True)
    return {
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
    """Measure an undisturbed run, then kill `count` others at moments spread over its time."""
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
        kills.append(kill_once(source, path, SPLITS[kind], rng.uniform(0, 1.1 * seconds)))
        kills[-1]["identical"] = kills[-1].pop("digest") == whole[kind]
        remove(folder)
    print(json.dumps(kills, indent=1))  # noqa: T201


if __name__ == "__main__":
    main()
