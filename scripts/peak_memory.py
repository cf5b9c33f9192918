"""Quantize a synthetic model of any size and measure the peak of resident memory.

The model is a Llama of F16 weights in a sparse file: random at the beginning of each tensor, holes
(zeros) after that, so that 20 GB need little disk. Memory does not depend on the values.

    python scripts/peak_memory.py --gigabytes 20 --max-memory 1GiB

Or calibrate one layer of a shape, some of its matrices, on random tokens; pages of mapped files,
which the system may take back, do not count then:

    python scripts/peak_memory.py --shape 70b --calibrate 1024 --max-memory 24GiB
"""

import argparse
import os
import re
import sys
import tempfile
from pathlib import Path

import measuring
import numpy as np

from tqgguf.calibration.cached import calibrate_model
from tqgguf.calibration.resources import resources
from tqgguf.cli.options import byte_size
from tqgguf.machine.machine import Machine
from tqgguf.models import Model, open_model
from tqgguf.models.metadata import Value, encode
from tqgguf.output.layout import TensorInfo, lay_out
from tqgguf.rotation.rotation import NO_ROTATION

WIDTHS = {"8b": (4096, 14336), "70b": (8192, 28672)}
VOCABULARY, HEADS = 32000, 32
RANDOM = 1 << 20  # weights at the beginning of each tensor that are not zero


def tensors(gigabytes: float, shape: str) -> list[TensorInfo]:
    """The tensors of a Llama of a shape with as many layers as fill the size in F16."""
    WIDTH, FFN = WIDTHS[shape]
    outside = [
        TensorInfo("token_embd.weight", (VOCABULARY, WIDTH), "F16"),
        TensorInfo("output_norm.weight", (WIDTH,), "F32"),
        TensorInfo("output.weight", (VOCABULARY, WIDTH), "F16"),
    ]
    shapes: dict[str, tuple[int, ...]] = {
        "attn_norm": (WIDTH,),
        "attn_q": (WIDTH, WIDTH),
        "attn_k": (WIDTH // 4, WIDTH),
        "attn_v": (WIDTH // 4, WIDTH),
        "attn_output": (WIDTH, WIDTH),
        "ffn_norm": (WIDTH,),
        "ffn_gate": (FFN, WIDTH),
        "ffn_up": (FFN, WIDTH),
        "ffn_down": (WIDTH, FFN),
    }
    layers: list[TensorInfo] = []
    while sum(t.n_bytes for t in outside + layers) < gigabytes * 1e9:
        number = len(layers) // len(shapes)
        layers += [
            TensorInfo(f"blk.{number}.{role}.weight", shape, "F16" if len(shape) > 1 else "F32")
            for role, shape in shapes.items()
        ]
    return outside + layers


def metadata(layers: int, shape: str) -> dict[str, Value]:
    """What the fold needs to know."""
    WIDTH, FFN = WIDTHS[shape]
    keys = {
        "general.architecture": "llama",
        "llama.block_count": layers,
        "llama.embedding_length": WIDTH,
        "llama.feed_forward_length": FFN,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": HEADS // 4,
    }
    return {key: encode(value) for key, value in keys.items()}


def write_model(path: Path, gigabytes: float, shape: str) -> None:
    """Write the sparse model."""
    infos = tensors(gigabytes, shape)
    layout = lay_out(metadata(len(infos) // 9, shape), infos)
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(RANDOM).astype("<f2") / np.float16(50)
    with path.open("wb") as file:
        file.write(layout.header)
        file.truncate(layout.size)
        for info in infos:
            file.seek(layout.offsets[info.name])
            is_gain = info.type == "F32"
            values = np.ones(info.shape, "<f4") if is_gain else noise
            file.write(values.tobytes()[: info.n_bytes])


def main() -> None:
    """Write, quantize, measure, print one line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=20)
    parser.add_argument("--max-memory", default="1GiB")
    parser.add_argument("--threads", default="2")
    parser.add_argument("--type", default="tq-q4")
    parser.add_argument("--folder", type=Path, default=None, help="where there is room")
    parser.add_argument("--shape", default="8b", choices=list(WIDTHS))
    parser.add_argument("--calibrate", type=int, metavar="TOKENS")
    parser.add_argument("--matrices", default="attn_q|ffn_down", help="to calibrate, a pattern")
    parser.add_argument("--here", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.here:
        calibrate(asked)
        return
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        source, output = Path(folder) / "m.gguf", Path(folder) / "q.gguf"
        one_layer = (4 * VOCABULARY * WIDTHS[asked.shape][0] + 1e6) / 1e9
        write_model(source, one_layer if asked.calibrate else asked.gigabytes, asked.shape)
        if asked.calibrate:
            watch_calibration(source, asked)
            return
        command = [sys.executable, "-m", "tqgguf", "quantize", str(source), "-o", str(output)]
        command += ["--type", asked.type, "--threads", asked.threads, "--quiet"]
        seconds, peak, _, _ = measuring.run([*command, "--max-memory", asked.max_memory])
        print(
            f"{source.stat().st_size / 1e9:.2f} GB F16 -> {output.stat().st_size / 1e9:.2f} GB "
            f"{asked.type}, {asked.threads} threads, --max-memory {asked.max_memory}: "
            f"peak resident memory {peak / 2**20:,.0f} MiB, {seconds:.0f} s"
        )


def watch_calibration(source: Path, asked: argparse.Namespace) -> None:
    """Calibrate in a process of its own."""
    cache = source.parent / "cache"
    command = [sys.executable, *sys.argv, "--here", str(source)]
    used = measuring.run(command, env=os.environ | {"XDG_CACHE_HOME": str(cache)})
    said = resources(*calibrated(source, asked), machine(asked))
    print(
        f"{' '.join(sys.argv[1:])}: peak of resident memory of its own {used.own / 2**20:,.0f} MiB "
        f"(with mapped files {used.peak / 2**20:,.0f} MiB), {used.seconds:.0f} s; "
        f"the plan said {said.memory / 2**20:,.0f} MiB"
    )


def calibrate(asked: argparse.Namespace) -> None:
    """Round matrices of the first layer on random tokens."""
    model, types, shape = calibrated(asked.here, asked)
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, shape, np.int32)
    calibrate_model(model, NO_ROTATION, types, tokens, machine=machine(asked))


def calibrated(
    source: Path, asked: argparse.Namespace
) -> tuple[Model, dict[str, str], tuple[int, int]]:
    """The model, what its matrices become, and the shape of the tokens."""
    model = open_model(source)
    types = {n: "Q4_K" for n in model.tensors if re.search(rf"blk\.0\.({asked.matrices})\.", n)}
    return model, types, (asked.calibrate // 512, 512)


def machine(asked: argparse.Namespace) -> Machine:
    """Who works."""
    return Machine(int(asked.threads), byte_size(asked.max_memory), processes=True)


if __name__ == "__main__":
    main()
