"""What is calibration worth? Our files beside llama-quantize's with an imatrix of the same text.

Both get one text to calibrate on and are judged on another: mean KL divergence from the original
by llama-perplexity, and the size of the file.

    python scripts/measure_calibration.py novels-5m-f16.gguf novels-calib.txt novels-eval.txt
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from tqgguf.calibration.cached import calibrate_model
from tqgguf.llamacpp import Settings, programs
from tqgguf.machine.machine import Machine
from tqgguf.measure import eval as evaluate
from tqgguf.measure.eval import QualityRow
from tqgguf.models import open_model
from tqgguf.pipeline import convert
from tqgguf.planning.choices import prepare
from tqgguf.planning.plan import Options

PURE = "q4_0:Q4_0,q4_k:Q4_K,q3_k:Q3_K,q2_k:Q2_K,3.5:Q3_K,size:Q3_K,tq-q3:Q4_0"
MIXED = "tq-q4:Q4_K_M,tq-q3:Q3_K_M,tq-q3:Q4_0"


@dataclass(frozen=True)
class Pair:
    """What is compared.

    ours: a type or recipe, bits per weight to choose types for, or "size" for the other's bytes;
    theirs: llama-quantize's type, pure: of every matrix.
    """

    ours: str
    theirs: str
    pure: bool


@dataclass(frozen=True)
class Maker:
    """Makes both files of a pair in a folder, from the same text."""

    model: Path
    text: Path
    folder: Path
    rotate: str
    tokens: int | None
    threads: int | None

    def theirs(self, pair: Pair) -> Path:
        """llama-quantize's file; its importance matrix is taken once."""
        imatrix = self.folder / "imatrix.gguf"
        if not imatrix.exists():
            context = evaluate.default_context(self.model)
            programs.imatrix(self.model, self.text, imatrix, context=context, threads=self.threads)
        path = self.folder / f"{pair.theirs}{'-pure' * pair.pure}.gguf"
        programs.quantize_file(
            *(self.model, path, pair.theirs), imatrix=imatrix, pure=pair.pure, threads=self.threads
        )
        return path

    def ours(self, pair: Pair, size: int) -> Path:
        """Our calibrated file; size: bytes of the other one."""
        model, path = open_model(self.model), self.folder / f"{pair.ours}.gguf"
        bits = float(pair.ours) if pair.ours[0].isdigit() else None
        target = size if pair.ours == "size" else None
        options = Options(
            rotate=self.rotate,
            target_bpw=bits,
            target_size=target,
            calibrate=self.text,
            calibrate_tokens=self.tokens,
        )
        if bits is None and target is None:
            options = replace(options, type=pair.ours)
        machine = Machine(self.threads)
        prepared = prepare(model, options, machine)
        if prepared.tokens is None:
            raise AssertionError("no tokens without a forward pass")
        made = calibrate_model(
            model,
            prepared.plan.rotation,
            prepared.plan.matrix_types,
            prepared.tokens,
            machine=machine,
        )
        reports = convert(
            *(model, prepared.plan, path), calibrated=made, machine=machine, force=True
        )
        for _ in reports:
            pass
        return path


def main() -> None:
    """Parse the arguments, make and measure the files, print the table in Markdown."""
    parser = argparse.ArgumentParser(description="calibrated files beside llama-quantize's")
    parser.add_argument("model", type=Path)
    parser.add_argument("calibration", type=Path, help="text to calibrate on")
    parser.add_argument("text", type=Path, help="text to be judged on")
    parser.add_argument("--pure", default=PURE, help="OURS:THEIRS,... with one type throughout")
    parser.add_argument("--mixed", default=MIXED, help="OURS:THEIRS,... with their mixtures")
    parser.add_argument("--rotate", default="none")
    parser.add_argument("--tokens", type=int, help="to calibrate on")
    parser.add_argument("--chunks", type=int, default=80, help="of the text, to be judged on")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    pairs = [*read_pairs(args.pure, pure=True), *read_pairs(args.mixed, pure=False)]
    settings = Settings(evaluate.default_context(args.model), args.chunks, args.threads)
    with TemporaryDirectory(prefix="tqgguf-") as folder:
        maker = Maker(
            *(args.model, args.calibration, Path(folder)), args.rotate, args.tokens, args.threads
        )
        print_table(compare(pairs, maker, args.text, settings))


def read_pairs(text: str, *, pure: bool) -> Iterator[Pair]:
    """Pairs of a list such as q4_0:Q4_0,size:Q3_K."""
    for item in filter(None, text.split(",")):
        ours, _, theirs = item.partition(":")
        yield Pair(ours, theirs, pure)


def compare(
    pairs: list[Pair], maker: Maker, text: Path, settings: Settings
) -> Iterator[tuple[Pair, QualityRow, QualityRow]]:
    """Every pair with their and our file's row."""
    original = evaluate.prepare_original(maker.model, text, settings)
    for pair in pairs:
        theirs = evaluate.measure_quality(original, maker.theirs(pair), settings)
        ours = evaluate.measure_quality(original, maker.ours(pair, theirs.bytes), settings)
        yield pair, theirs, ours


def print_table(rows: Iterator[tuple[Pair, QualityRow, QualityRow]]) -> None:
    """One line per pair, as soon as it is measured."""
    print("| llama-quantize + imatrix | bytes | KLD | calibrated | bytes | KLD | ratio |")
    print("|---|---:|---:|---|---:|---:|---:|")
    for pair, theirs, ours in rows:
        print(
            f"| {pair.theirs}{' --pure' * pair.pure} | {theirs.bytes:,} | {theirs.kld_mean:.5f} "
            f"| {pair.ours} | {ours.bytes:,} | {ours.kld_mean:.5f} "
            f"| {ours.kld_mean / theirs.kld_mean:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
