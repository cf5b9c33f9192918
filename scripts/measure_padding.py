"""Do padded rows buy anything? Divergence by size of one model, its rows as they are and padded.

K- and IQ-types need rows of 256. A model whose width they do not divide can be padded by exact
folds (zero channels, a norm's gain and epsilon made up for it) and takes them then, for some more
weights. Whether that pays depends on how many: real models of the wanted width are large, so a
small one is spread over WIDTH channels first. Each channel is one of the model's times a number,
such that the map is an isometry: it computes the same, and keeps its gains, outliers and energies.
Both forms are quantized by the same command for the same bytes.

    python scripts/measure_padding.py --width 960 MODEL calibration.txt evaluation.txt
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from gguf import LlamaFileType

from tqgguf import llamacpp
from tqgguf.kernels.dtypes import F32
from tqgguf.llamacpp import Settings, Workload
from tqgguf.measure import eval as evaluate
from tqgguf.models import Model, Tensor, open_model
from tqgguf.models.metadata import Value, encode
from tqgguf.models.roles import role
from tqgguf.output.layout import TensorInfo, lay_out
from tqgguf.rotation.architectures import STREAMS
from tqgguf.rotation.padded_axes import padding
from tqgguf.rotation.padding import padded

SIZES = "1,0.9,0.8,0.7,0.6"  # of the bytes of IQ4_NL, which fits any row


@dataclass(frozen=True)
class Spread:
    """An isometry from n_embd channels to more: new channel i is factor[i] times source[i]."""

    source: np.ndarray[tuple[int], np.dtype[np.int64]]
    factor: F32

    def columns(self, x: F32) -> F32:
        """Its transpose on the right: (n, n_embd) -> (n, width)."""
        return x[:, self.source] * self.factor

    def gain(self, x: F32) -> F32:
        """A norm's gain (n_embd,) -> (width,): the mean square is over more channels."""
        return x[self.source] * np.float32(np.sqrt(x.size / self.source.size))


def copies(n_embd: int, width: int) -> Spread:
    """Every channel at some random places of `width`, times normal numbers of unit norm."""
    rng = np.random.default_rng(0)
    turns = [rng.permutation(n_embd) for _ in range(-(-width // n_embd))]
    source = np.concatenate(turns)[:width]
    raw = rng.standard_normal(width)
    norm = np.sqrt(np.bincount(source, raw**2, minlength=n_embd))
    return Spread(source, (raw / norm[source]).astype(np.float32))


def write(model: Model, path: Path) -> None:
    """Write the model, matrices in F16."""
    tensors = list(model.tensors.values())
    infos = [TensorInfo(t.name, t.shape, "F32" if len(t.shape) == 1 else "F16") for t in tensors]
    layout = lay_out(model.metadata, infos)
    with path.open("wb") as file:
        file.write(layout.header)
        for tensor, info in zip(tensors, infos, strict=True):
            file.seek(layout.offsets[info.name])
            dtype = "<f4" if info.type == "F32" else "<f2"
            file.write(tensor.read().astype(dtype).tobytes())
        file.truncate(layout.size)


def spread_out(model: Model, spread: Spread) -> Model:
    """The model with its residual stream spread out."""
    row = STREAMS[model.architecture]
    norms = {*row.norms, row.head_norm}
    tensors = {n: respread(t, spread, norms, row.writers) for n, t in model.tensors.items()}
    metadata = {**model.metadata, **widened(model, spread.source.size)}
    return replace(model, metadata=metadata, tensors=tensors)


def widened(model: Model, width: int) -> dict[str, Value]:
    """The metadata that a width changes; head sizes no longer follow from it."""
    arch, n_embd = model.architecture, int(model.get("{arch}.embedding_length"))
    head = n_embd // int(model.get("{arch}.attention.head_count"))
    epsilon = "{arch}.attention.layer_norm_rms_epsilon"
    values = {
        "embedding_length": width,
        "attention.key_length": int(model.get("{arch}.attention.key_length", head)),
        "attention.value_length": int(model.get("{arch}.attention.value_length", head)),
        "attention.layer_norm_rms_epsilon": float(model.get(epsilon)) * n_embd / width,
    }
    made = {f"{arch}.{key}": encode(value) for key, value in values.items()}
    return made | {"general.file_type": encode(int(LlamaFileType.MOSTLY_F16))}


def respread(tensor: Tensor, spread: Spread, norms: set[str], writers: tuple[str, ...]) -> Tensor:
    """One tensor for the wider stream."""
    kind, _ = role(tensor.name)
    x = tensor.read()
    if kind in norms:
        made = spread.gain(x)
    elif kind in writers:
        made = np.ascontiguousarray(spread.columns(x.T).T)
    elif len(tensor.shape) == 2:
        made = spread.columns(x)
    else:
        return tensor
    return replace(tensor, shape=made.shape, rows=partial(rows_of, made))


def rows_of(x: F32, start: int, stop: int) -> F32:
    """Rows of what is in memory."""
    return x.reshape(-1, x.shape[-1])[start:stop]


def quantized(model: Path, path: Path, options: list[str], also: Sequence[str] = ()) -> str:
    """Our file by the command that a user would type; what it said where it refused.

    also: types of small blocks that may be chosen besides those that are.
    """
    start = f"import tqgguf.planning.allocation as a; a.SMALL_BLOCK_TYPES += {tuple(also)}; "
    start += "from tqgguf.cli import main; main()"
    command = [sys.executable, "-c", start, "quantize", str(model), "-o", str(path)]
    done = subprocess.run(
        [*command, "--pad", "none", "--force", "--quiet", *options],
        check=False,
        capture_output=True,
        text=True,
    )
    return done.stderr.strip().splitlines()[-1] if done.returncode else ""


def main() -> None:
    """Parse the arguments, write both forms, measure each size of each, print a table."""
    args = arguments()
    with TemporaryDirectory(prefix="tqgguf-") as folder:
        files = print_quality(args, forms(args, Path(folder)), Path(folder))
        if args.rounds:
            print_speeds(files, args.rounds, args.threads)


def arguments() -> argparse.Namespace:
    """What is measured, of which model."""
    parser = argparse.ArgumentParser(description="quantized files with rows padded and not")
    parser.add_argument("model", type=Path, help="a GGUF with RMSNorm")
    parser.add_argument("calibration", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--width", type=int, default=2688)
    parser.add_argument("--efforts", default="fast,good,best")
    parser.add_argument("--sizes", default=SIZES)
    parser.add_argument("--types", default="", help="single types to measure too")
    parser.add_argument("--also", default="", help="Q2_0,NVFP4: may be chosen for a size too")
    parser.add_argument("--tokens", type=int, default=8192, help="of --effort best")
    parser.add_argument("--rounds", type=int, default=0, help="of decode speed, of all files")
    parser.add_argument("--chunks", type=int, default=16)
    parser.add_argument("--threads", type=int)
    return parser.parse_args()


def forms(args: argparse.Namespace, folder: Path) -> dict[str, Path]:
    """The model in rows of the asked width, and the same padded."""
    wide, grown = folder / "wide.gguf", folder / "padded.gguf"
    source = open_model(args.model)
    spread = copies(int(source.get("{arch}.embedding_length")), args.width)
    write(spread_out(source, spread), wide)
    again = open_model(wide)
    write(padded(again, padding(again, stream=True)), grown)
    return {"as it is": wide, "padded": grown}


def print_quality(
    args: argparse.Namespace, models: dict[str, Path], folder: Path
) -> dict[str, Path]:
    """A line for each size of each form; the files by what they are."""
    wide = models["as it is"]
    settings = Settings(evaluate.default_context(wide), args.chunks, args.threads)
    original = evaluate.prepare_original(wide, args.text, settings)
    print("| effort | what | form | bytes | bits per original weight | KLD | same top token |")
    print("|---|---|---|---:|---:|---:|---:|")
    files: dict[str, Path] = {}
    for effort, what, options in wanted(args, wide, folder):
        for form, model in models.items():
            path = folder / f"{len(files)}.gguf"
            refusal = quantized(model, path, options, list(filter(None, args.also.split(","))))
            if refusal:
                line = f"{refusal.replace(str(folder), '')} | | |"
            else:
                files[f"{effort}, {what}, {form}"] = path
                row = evaluate.measure_quality(original, path, settings)
                size = f"{row.bytes:,} | {row.bpw:.2f}"
                line = f"{size} | {row.kld_mean:.3g} | {row.same_top:.1f} % |"
            print(f"| {effort} | {what} | {form} | {line}", flush=True)
    return files


def print_speeds(files: dict[str, Path], count: int, threads: int | None) -> None:
    """Decode speed of the files, in turns: medians and ranges."""
    work = Workload(prompt=0, generate=32, threads=threads)
    speeds = llamacpp.summarize(llamacpp.rounds(list(files.values()), work, count=count))
    print("\n| file | decode tok/s | range |\n|---|---:|---:|")
    for name, speed in zip(files, speeds, strict=True):
        low, high = speed.tg_range or (0.0, 0.0)
        print(f"| {name} | {speed.tg:.1f} | {low:.1f}-{high:.1f} |")


def wanted(
    args: argparse.Namespace, wide: Path, folder: Path
) -> Iterator[tuple[str, str, list[str]]]:
    """Effort, what is asked for, and the options for it."""
    quantized(wide, folder / "out.gguf", ["--type", "iq4_nl", "--effort", "fast"])
    whole = (folder / "out.gguf").stat().st_size
    best = ["--calibrate", str(args.calibration), "--calibrate-tokens", str(args.tokens)]
    threads = ["--threads", str(args.threads)] if args.threads else []
    for effort in args.efforts.split(","):
        options = [*(best if effort == "best" else ["--effort", effort]), *threads]
        for type in filter(None, args.types.split(",")):
            yield effort, type, ["--type", type, *options]
        for size in map(float, filter(None, args.sizes.split(","))):
            yield effort, f"{size:g} of IQ4_NL", ["--target-size", str(int(whole * size)), *options]


if __name__ == "__main__":
    main()
