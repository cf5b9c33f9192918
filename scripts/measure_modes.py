"""Is --rotate auto within a few per cent of the best mode? The KL divergence of every mode.

A model is quantized with each rotation, with a text's energies (good) and without (fast), and the
table says which of them auto takes and by how much its file is worse than the best one. Bytes
count too: `bytes over` is what a mode's file takes more than the unrotated one.

    python scripts/measure_modes.py original-f16.gguf wiki-eval.txt --chunks 8
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from tqgguf.llamacpp import Settings
from tqgguf.measure import eval as evaluate
from tqgguf.planning.rotations import MODES


def main() -> None:
    """Parse the arguments, measure, print a table in Markdown."""
    parser = argparse.ArgumentParser(description="every rotation's divergence, and auto's choice")
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path, help="text to be judged on")
    parser.add_argument("--types", default="tq-q4")
    parser.add_argument("--efforts", default="fast,good")
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--context", type=int)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    context = args.context or evaluate.default_context(args.model)
    settings = Settings(context, args.chunks, args.threads)
    original = evaluate.prepare_original(args.model, args.text, settings)
    modes = args.modes.split(",")
    print(f"| type | effort | {' | '.join(modes)} | auto | over the best |")
    print("|---|---|" + "---:|" * len(modes) + "---|---:|")
    for type in args.types.split(","):
        for effort in args.efforts.split(","):
            options = ["--type", type, "--effort", effort]
            rows = dict(measured(original, settings, modes, options))
            taken = chosen(args.model, options)
            cells = " | ".join(told(rows.get(mode), rows[modes[0]]) for mode in modes)
            best = min(row.kld_mean for row in rows.values())
            over = f"{rows[taken].kld_mean / best - 1:+.1%}" if taken in rows else ""
            print(f"| {type} | {effort} | {cells} | {taken} | {over} |", flush=True)


def measured(
    original: evaluate.Original, settings: Settings, modes: list[str], options: list[str]
) -> Iterator[tuple[str, evaluate.QualityRow]]:
    """The row of every mode that the model's architecture can be folded with."""
    with TemporaryDirectory(prefix="tqgguf-") as folder:
        path = Path(folder) / "file.gguf"
        for mode in modes:
            command = [sys.executable, "-m", "tqgguf", "quantize", original.model, "-o", str(path)]
            command += ["--force", "--quiet", "--rotate", mode, *options]
            command += ["--threads", str(settings.threads)] if settings.threads else []
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"{mode}: {done.stderr.strip()}", file=sys.stderr)
            else:
                yield mode, evaluate.measure_quality(original, path, settings)


def chosen(model: Path, options: list[str]) -> str:
    """What auto takes."""
    command = [sys.executable, "-m", "tqgguf", "plan", str(model), "--json", *options]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return str(json.loads(said)["rotation"]["mode"])


def told(row: evaluate.QualityRow | None, control: evaluate.QualityRow) -> str:
    """A divergence, and the bytes over the control's where they are more than a record's."""
    if row is None:
        return "-"
    more = row.bytes / control.bytes - 1
    return f"{row.kld_mean:.5f}" + (f" (+{more:.0%})" if more > 0.005 else "")


if __name__ == "__main__":
    main()
