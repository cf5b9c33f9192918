"""Whole runs of `tqgguf quantize` against `llama-quantize`: wall time and peak memory.

A synthetic F16 Llama of 0.5 billion parameters is quantized to pure Q4_K, by us with the fused
rotation, by llama-quantize without; alternating, each in a process of its own. Prints both medians,
the median of the ratios of neighbouring runs, and our peak resident memory, all processes summed.

    make bench-quantize
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


def main() -> None:
    """Parse the arguments, measure and print."""
    parser = argparse.ArgumentParser(description="tqgguf quantize against llama-quantize")
    parser.add_argument("--type", default="Q4_K")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="one JSON document")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model, output = Path(folder) / "synthetic-f16.gguf", Path(folder) / "out.gguf"
        script = [sys.executable, str(HERE / "make_synthetic_model.py"), str(model)]
        subprocess.run(script, check=True, stdout=subprocess.DEVNULL)
        result = compare(model, output, args.type, args.threads, args.rounds)
    if args.json:
        print(json.dumps(result, indent=2))
        return
    print(
        f"tqgguf {result['seconds']:.1f} s, llama-quantize {result['seconds_ggml']:.1f} s, "
        f"ratio {result['ratio']:.2f}, peak memory {result['peak_mib']:.0f} MiB"
    )


def compare(model: Path, output: Path, type: str, threads: int, rounds: int) -> dict[str, float]:
    """Alternate both programs; medians of seconds and of their ratio, and our peak memory."""
    ours = [sys.executable, "-m", "tqgguf", "quantize", str(model), "-o", str(output)]
    ours += ["--type", type, "--threads", str(threads), "--force", "--quiet"]
    theirs = [str(find("llama-quantize")), "--pure", str(model), str(output)]
    theirs += [type, str(threads)]
    runs = [(measuring.run(ours), measuring.run(theirs)) for _ in range(rounds)]
    return {
        "seconds": statistics.median(mine[0] for mine, _ in runs),
        "seconds_ggml": statistics.median(other[0] for _, other in runs),
        "ratio": statistics.median(mine[0] / other[0] for mine, other in runs),
        "peak_mib": max(mine[1] for mine, _ in runs) / 2**20,
    }


if __name__ == "__main__":
    main()
