"""The table of a real model: llama-quantize's mixtures and ours, by size and KL divergence.

llama-quantize's files are made with and without an importance matrix of the calibration text; ours
at every effort with the built-in text, and in the bytes of theirs, by --target-size, calibrated on
as much of that text. All are judged on another text. Lines are kept in the user's cache, under what
is measured, by which code and how, so a run that was stopped goes on; so are the seconds.

    python scripts/measure_real.py "$(python scripts/real_model.py)" wiki-calib.txt wiki-eval.txt

--width spreads the model over more channels first (`scripts/measure_padding.py`), so that types of
256 weights fit its rows. --plain makes a file of a type by ggml's encoder alone, without the scale
of a whole matrix, all else as in ours (PYTHONPATH=.:tests).
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

from measure_padding import copies, spread_out, write

from tqgguf import llamacpp
from tqgguf.llamacpp import Settings, programs
from tqgguf.machine.cache import user_cache
from tqgguf.machine.content import content_key
from tqgguf.measure import bench as benchmark
from tqgguf.measure import eval as evaluate
from tqgguf.models import Model, open_model
from tqgguf.output.layout import TensorInfo, lay_out
from tqgguf.output.whole import whole_file

THEIRS = ("Q4_K_M", "IQ4_NL", "Q3_K_M", "Q2_K")
OURS = ("tq-q4", "tq-q3", "tq-q2")
NEEDS_MATRIX = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS")  # or llama-quantize refuses
EFFORTS = ("fast", "good", "best")
TARGETS = ("Q4_K_M", "IQ4_NL", "Q3_K_M")  # whose bytes are ours too
Line = tuple[str, evaluate.QualityRow, float]  # what made a file, its measures, seconds


@dataclass(frozen=True)
class Maker:
    """Makes files of one model in a folder."""

    model: Path
    folder: Path
    text: Path
    chunks: int
    context: int
    threads: int | None

    def theirs(self, type: str, *, weighed: bool) -> Path:
        """llama-quantize's file; the importance matrix is taken once."""
        imatrix = self.folder / "imatrix.gguf"
        if weighed and not imatrix.exists():
            programs.imatrix(
                *(self.model, self.text, imatrix),
                context=self.context,
                chunks=self.chunks,
                threads=self.threads,
            )
        path = self.folder / "theirs.gguf"
        used = imatrix if weighed else None
        programs.quantize_file(self.model, path, type, imatrix=used, threads=self.threads)
        return path

    def ours(self, options: Sequence[str]) -> Path:
        """Our file, made by the command that a user would type."""
        path = self.folder / "ours.gguf"
        command = [sys.executable, "-m", "tqgguf", "quantize", str(self.model), "-o", str(path)]
        threads = ["--threads", str(self.threads)] if self.threads else []
        subprocess.run([*command, "--force", "--quiet", *options, *threads], check=True)
        return path

    def plain(self, type: str) -> Path:
        """Our file of effort fast, its blocks of this type by ggml and without a matrix's scale."""
        options = ["--type", type, "--effort", "fast", "--rotate", "none"]
        return plainly_packed(open_model(self.model), open_model(self.ours(options)), type)


def plainly_packed(source: Model, packed: Model, type: str) -> Path:
    """Beside a packed file, the same with the source's weights in this type as ggml has them."""
    import ggml

    tensors = packed.tensors.values()
    layout = lay_out(packed.metadata, [TensorInfo(t.name, t.shape, t.type) for t in tensors])
    path = packed.path.with_name("plain.gguf")
    with path.open("wb") as file:
        file.write(layout.header)
        for t in tensors:
            rows = source.tensors[t.name].read() if t.type == type else None
            data = t.stored(0, t.n_rows) if rows is None else ggml.quantize(rows, type)
            file.seek(layout.offsets[t.name])
            file.write(data.tobytes())
        file.truncate(layout.size)
    return path


def spread_model(model: Path, path: Path, width: int) -> Path:
    """Write a model that computes the same in more channels."""
    source = open_model(model)
    write(spread_out(source, copies(int(source.get("{arch}.embedding_length")), width)), path)
    return path


def main() -> None:
    """Make and measure every file, print a table in Markdown."""
    args = arguments()
    settings = Settings(evaluate.default_context(args.model), args.chunks, args.threads)
    with TemporaryDirectory(prefix="tqgguf-") as folder:
        if args.width:
            args.model = spread_model(args.model, Path(folder) / "wide.gguf", args.width)
        maker = Maker(
            *(args.model, Path(folder), args.calibration, args.imatrix_chunks),
            *(settings.context, args.threads),
        )
        theirs, *ours = (
            list(filter(None, a.split(",")))
            for a in (args.theirs, args.ours, args.efforts, args.targets)
        )
        original = evaluate.prepare_original(args.model, args.text, settings)
        used = [args.model, args.calibration, args.text, *benchmark.code_files()]

        def measured(name: str, make: Callable[[], Path]) -> Line:
            key = content_key(used, name, settings, args.imatrix_chunks, llamacpp.version())
            return kept(key, lambda: measure(name, make, original, settings))

        options = wanted(*ours, text=args.calibration, tokens=args.tokens)
        plain = (
            measured(f"{type}, ggml's blocks alone", partial(maker.plain, type))
            for type in filter(None, args.plain.split(","))
        )
        print_table(chain(plain, lines(maker, measured, theirs, options)))


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description="real files beside llama-quantize's")
    parser.add_argument("model", type=Path)
    parser.add_argument("calibration", type=Path, help="text for the importance matrix")
    parser.add_argument("text", type=Path, help="text to be judged on")
    parser.add_argument("--theirs", default=",".join(THEIRS))
    parser.add_argument("--ours", default=",".join(OURS))
    parser.add_argument("--efforts", default=",".join(EFFORTS))
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--plain", default="", help="types by ggml's encoder alone: NVFP4")
    parser.add_argument("--width", type=int, help="channels to spread the model over first")
    parser.add_argument("--tokens", type=int, default=8192, help="of --effort best")
    parser.add_argument("--imatrix-chunks", type=int, default=32)
    parser.add_argument("--chunks", type=int, default=16, help="of the text, to be judged on")
    parser.add_argument("--threads", type=int)
    return parser.parse_args()


def measure(
    name: str, make: Callable[[], Path], original: evaluate.Original, settings: Settings
) -> Line:
    """Make a file and judge it."""
    began = time.perf_counter()
    path = make()
    seconds = time.perf_counter() - began
    return name, evaluate.measure_quality(original, path, settings), seconds


def kept(key: str, make: Callable[[], Line]) -> Line:
    """The line of an earlier run, or a new one."""
    path = user_cache() / "lines" / f"{key}.json"
    if not path.is_file():
        name, row, seconds = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as scratch:
            scratch.write_text(json.dumps([name, asdict(row), seconds]))
    name, row, seconds = json.loads(path.read_text())
    return name, evaluate.QualityRow(**row), seconds


def wanted(
    recipes: Sequence[str],
    efforts: Sequence[str],
    targets: Sequence[str],
    *,
    text: Path,
    tokens: int,
) -> Iterator[list[str]]:
    """The options of every file of ours; a target is llama-quantize's type of the same bytes."""
    at = {"best": ["--calibrate-tokens", str(tokens)]}
    for recipe in recipes:
        for effort in efforts:
            yield ["--type", recipe, "--effort", effort, *at.get(effort, [])]
    for target in targets:
        yield ["--target-size", target, "--calibrate", str(text), *at["best"]]


def lines(
    maker: Maker,
    measured: Callable[[str, Callable[[], Path]], Line],
    theirs: Sequence[str],
    ours: Iterator[list[str]],
) -> Iterator[Line]:
    """What made each file, its row, and the seconds that took."""
    sizes = {}
    for type in theirs:
        for weighed in (True,) if type in NEEDS_MATRIX else (False, True):
            name = f"llama-quantize {type}{' with imatrix' * weighed}"
            line = measured(name, partial(maker.theirs, type, weighed=weighed))
            sizes[type] = str(line[1].bytes)
            yield line
    for options in ours:
        sized = [sizes.get(option, option) for option in options]
        yield measured("tqgguf " + " ".join(sized), partial(maker.ours, sized))


def print_table(rows: Iterator[tuple[str, evaluate.QualityRow, float]]) -> None:
    """One line per file, as soon as it is measured."""
    print("| file | bytes | bits per weight | KLD | same top token | made in |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, row, seconds in rows:
        print(
            f"| {name} | {row.bytes:,} | {row.bpw:.2f} | {row.kld_mean:.4f} "
            f"| {row.same_top:.1f} % | {seconds:.0f} s |",
            flush=True,
        )


if __name__ == "__main__":
    main()
