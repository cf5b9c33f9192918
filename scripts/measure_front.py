"""Which type buys which quality at which speed, on this machine?

Decode speed of every type comes from a large model (its weights do not matter), KL divergence from
a trained one. Types that no other beats in bits, divergence and speed are marked: recipes are
chosen among them (docs/decisions). What was measured of the trained one is kept, so a run that was
stopped goes on there.

    python scripts/measure_front.py random-0.5b-f16.gguf novels-5m-f16.gguf novels-eval.txt
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

from tqgguf import llamacpp
from tqgguf.llamacpp import Settings, Speed, Workload
from tqgguf.measure import bench as benchmark
from tqgguf.measure import eval as evaluate
from tqgguf.measure.eval import QualityRow, mark_pareto

TYPES = "Q5_1,Q5_0,Q4_1,Q4_0,Q4_K,IQ4_XS,IQ4_NL,Q3_K,IQ3_S,Q2_K,IQ2_S"


@dataclass(frozen=True)
class Point:
    """One type: its row for the trained model as it is, and its divergence with `--rotate auto`."""

    type: str
    row: QualityRow
    rotated: float


def main() -> None:
    """Parse the arguments, measure, print the table in Markdown."""
    parser = argparse.ArgumentParser(description="KL divergence and decode speed of every type")
    parser.add_argument("large", type=Path, help="model for the speed, F16")
    parser.add_argument("trained", type=Path, help="model for the quality")
    parser.add_argument("text", type=Path)
    parser.add_argument("--types", default=TYPES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--n-gen", type=int, default=32)
    parser.add_argument("--chunks", type=int, help="of the text, to be judged on")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    types = args.types.split(",")
    work = Workload(prompt=0, generate=args.n_gen, threads=args.threads)
    settings = Settings(evaluate.default_context(args.trained), args.chunks, args.threads)
    found = measure_quality(args.trained, args.text, types, settings)
    speeds = measure_speed(args.large, types, work, rounds=args.rounds)
    print_table(joined(types, found, speeds), speeds)


def measure_speed(large: Path, types: list[str], work: Workload, *, rounds: int) -> list[Speed]:
    """Interleaved rounds over one file per type."""
    files = [
        benchmark.ours(large, t, rotate="none", effort="fast", threads=work.threads) for t in types
    ]
    return llamacpp.summarize(llamacpp.rounds(files, work, count=rounds))


def measure_quality(
    trained: Path, text: Path, types: list[str], settings: Settings
) -> list[tuple[QualityRow, QualityRow]]:
    """KL divergence of every type without rotation and with `--rotate auto`."""
    original = evaluate.prepare_original(trained, text, settings)

    def measured(type: str, rotate: str) -> QualityRow:
        file = benchmark.ours(trained, type, rotate=rotate, threads=settings.threads)
        return evaluate.measure_quality(original, file, settings)

    return [(measured(type, "none"), measured(type, "auto")) for type in types]


def joined(
    types: list[str], found: list[tuple[QualityRow, QualityRow]], speeds: list[Speed]
) -> list[Point]:
    """Points with the best of them marked."""
    plain = (evaluate.with_speed(row, speed) for (row, _), speed in zip(found, speeds, strict=True))
    rows = mark_pareto(list(plain))
    pairs = zip(types, rows, found, strict=True)
    return [Point(type, row, rotated.kld_mean) for type, row, (_, rotated) in pairs]


def print_table(points: list[Point], speeds: list[Speed]) -> None:
    """One line per type, fewest bits first; speed with its range over rounds."""
    print("| type | bits per weight | KLD | KLD, rotate auto | decode tok/s | range | best |")
    print("|---|---:|---:|---:|---:|---:|:-:|")
    lines = sorted(zip(points, speeds, strict=True), key=lambda pair: pair[0].row.bytes)
    for point, speed in lines:
        bits = 8 * speed.tensor_bytes / speed.weights
        low, high = speed.tg_range or (0.0, 0.0)
        print(
            f"| {point.type} | {bits:.4g} | {point.row.kld_mean:.5f} | {point.rotated:.5f} "
            f"| {point.row.tg:.1f} | {low:.1f}-{high:.1f} | {'*' * point.row.pareto} |"
        )


if __name__ == "__main__":
    main()
