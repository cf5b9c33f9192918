"""Time calibration on a graphics card beside the CPU, and check that both round alike.

    python scripts/bench_device.py kernels                 feedback on one matrix, card and CPU
    python scripts/bench_device.py layers --tokens 16384   layers of an 8B shape, random weights
    python scripts/bench_device.py layers --device cpu     the same on the CPU
    python scripts/bench_device.py quality --model M --text T --held-out H --tokens 4096
                                                           a model's KL divergence, card and CPU

Of the first two, weights are drawn when they are read, so no file is needed. The last line is one
JSON document.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFValueType

from tqgguf.calibration import work
from tqgguf.calibration.calibrate import calibrate
from tqgguf.calibration.desk import SIZES
from tqgguf.calibration.device_desk import SMALLER
from tqgguf.formats import round_rows
from tqgguf.kernels import feedback
from tqgguf.kernels.arrays import to_numpy
from tqgguf.kernels.dtypes import F32, U8
from tqgguf.machine.crew import separate_processes
from tqgguf.machine.devices import Device, find_device
from tqgguf.machine.threads import default_threads, map_in_order, single_threaded_blas
from tqgguf.models import Model, Tensor
from tqgguf.models.metadata import encode

STD = 0.02
TYPES = {"attn_v": "Q6_K", "ffn_down": "Q5_K"}  # about what tq-q4 gives a model of this shape
TYPE = "Q4_K"
COMPARED = "Q4_0,Q4_1,Q5_0,Q5_1,IQ4_NL,tq-q4,tq-q3,tq-q2"


def main() -> None:
    """Parse the arguments and run one of the benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("kernels", "layers", "quality"))
    parser.add_argument("--device", default="cuda", help="cpu, cuda or auto")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--ffn", type=int, default=14336)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--type", default=TYPE)
    parser.add_argument("--calls", action="store_true", help="no recorded graphs of calls")
    parser.add_argument("--model", type=Path, help="quality: the original")
    parser.add_argument("--text", type=Path, help="quality: to calibrate on")
    parser.add_argument("--held-out", type=Path, help="quality: to measure on")
    parser.add_argument("--types", default=COMPARED, help="quality: each on both devices")
    args = parser.parse_args()
    if args.what == "quality":
        print(json.dumps(quality(args)))
        return
    device = find_device(args.device)
    if args.calls:
        device = replace(device, run=find_device("cpu").run)
    run = kernels if args.what == "kernels" else layers
    print(json.dumps(run(args, device)))


def kernels(args: argparse.Namespace, device: Device) -> dict[str, Any]:
    """One matrix rounded with feedback on the device and here: seconds, errors, equal bytes."""
    rng, n = np.random.default_rng(0), args.hidden
    w = rng.standard_normal((args.rows, n), np.float32)
    x = rng.standard_normal((2 * n, n), np.float32) * np.linspace(3, 0.1, n, dtype=np.float32)
    h = x.T @ x / np.float32(len(x))
    found: dict[str, Any] = {"card": device.card, "type": args.type, "shape": w.shape}
    results = []
    for name, where in (("device", device), ("device again", device), ("cpu", find_device("cpu"))):
        began = time.perf_counter()
        data, values = rounded(args.type, w, h, where)
        found[f"{name}: seconds"] = time.perf_counter() - began
        results.append(data)
        found[f"{name}: error"] = float(feedback.output_error(w.T, values.T, h).sum())
    found["same bytes twice"] = bool((results[0] == results[1]).all())
    found["bytes as on the cpu"] = float(np.mean(results[0] == results[2]))
    return found


def rounded(type: str, w: F32, h: F32, device: Device) -> tuple[U8, F32]:
    """Rows rounded on a device, or by all threads of the CPU."""
    moments = feedback.factored(device.put(h))
    rounding = partial(round_rows, type, moments=moments, sweeps=4, run=device.run)
    if not device.is_cpu:
        data, values = rounding(device.put(w))
        return data, to_numpy(values)
    parts = [w[at : at + 512] for at in range(0, len(w), 512)]
    with single_threaded_blas():
        pairs = list(map_in_order(rounding, parts, threads=None))
    return np.concatenate([a for a, _ in pairs]), np.concatenate([b for _, b in pairs])


def layers(args: argparse.Namespace, device: Device) -> dict[str, Any]:
    """Layers of a Llama shape calibrated: seconds of each, and the memory that it took."""
    model = shaped(args.hidden, args.ffn, args.layers)
    types = {n: TYPES.get(n.split(".")[-2], TYPE) for n in model.tensors if n.startswith("blk.")}
    types = {n: t for n, t in types.items() if len(model.tensors[n].shape) > 1}
    tokens = np.random.default_rng(1).integers(0, 1024, (-(-args.tokens // 512), 512))
    began, ends = time.perf_counter(), []
    with ExitStack() as stack:
        crew = None
        if device.is_cpu:
            count = default_threads()
            crew = stack.enter_context(separate_processes(count, preload=work.__name__))
        sizes = SIZES if device.is_cpu else SMALLER[0]
        where: dict[str, Any] = {"device": device, "sizes": sizes, "crew": crew}
        for name, _ in calibrate(model, types, tokens.astype(np.int32), **where):
            print(f"{name} at {time.perf_counter() - began:.1f} s", flush=True)
            if name.endswith("ffn_down.weight"):
                ends.append(time.perf_counter() - began)
    return {
        "card": device.card or "cpu",
        "tokens": int(tokens.size),
        "layers": args.layers,
        "weights": sum(model.tensors[n].size for n in types),
        "seconds": ends,
        "memory": device.most_memory(),
    }


def shaped(hidden: int, ffn: int, n_layer: int) -> Model:
    """A Llama model with a quarter as many heads of keys; 1024 tokens."""
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (1024, hidden)}
    for i in range(n_layer):
        shapes |= {f"blk.{i}.{name}.weight": shape for name, shape in _layer(hidden, ffn)}
    shapes |= {"output_norm.weight": (hidden,), "output.weight": (1024, hidden)}
    tensors = {
        name: Tensor(name, shape, "F32", partial(drawn, index, shape))
        for index, (name, shape) in enumerate(shapes.items())
    }
    numbers = {
        "block_count": n_layer,
        "embedding_length": hidden,
        "feed_forward_length": ffn,
        "attention.head_count": hidden // 128,
        "attention.head_count_kv": hidden // 512,
        "context_length": 8192,
    }
    metadata = {f"llama.{k}": encode(v, GGUFValueType.UINT32) for k, v in numbers.items()}
    metadata["general.architecture"] = encode("llama", GGUFValueType.STRING)
    eps = encode(1e-5, GGUFValueType.FLOAT32)
    return Model(Path("shape"), metadata | {"llama.attention.layer_norm_rms_epsilon": eps}, tensors)


def _layer(hidden: int, ffn: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name in ("attn_norm", "ffn_norm"):
        yield name, (hidden,)
    for name, rows in (("attn_q", hidden), ("attn_k", hidden // 4), ("attn_v", hidden // 4)):
        yield name, (rows, hidden)
    yield "attn_output", (hidden, hidden)
    yield "ffn_gate", (ffn, hidden)
    yield "ffn_up", (ffn, hidden)
    yield "ffn_down", (hidden, ffn)


def quality(args: argparse.Namespace) -> dict[str, Any]:
    """KL divergence of files that were calibrated on the device and on the CPU, and their ratios.

    Feedback carries a tie that falls the other way to all that follows, so one pair of files says
    little: the mean of the logarithms of the ratios is what tells, and its standard error.
    """
    types = args.types.split(",")
    with tempfile.TemporaryDirectory() as folder:
        made = {
            (type, device): Path(folder) / f"{type}-{device}.gguf"
            for type in types
            for device in (args.device, "cpu")
        }
        seconds = {f"{t} {d}": calibrated(args, t, d, path) for (t, d), path in made.items()}
        held_out = ["--text", str(args.held_out), "--chunks", "16", "--json"]
        rows = json.loads(tqgguf("eval", str(args.model), *map(str, made.values()), *held_out))
    found = {Path(row["model"]).name: row["kld_mean"] for row in rows["rows"]}
    ratios = {t: found[made[t, args.device].name] / found[made[t, "cpu"].name] for t in types}
    logs = [math.log(ratio) for ratio in ratios.values()]
    return {
        "divergence": found,
        "seconds": seconds,
        "ratios": ratios,
        "mean ratio": math.exp(statistics.mean(logs)),
        "standard error": statistics.stdev(logs) / math.sqrt(len(logs)),
    }


def calibrated(args: argparse.Namespace, type: str, device: str, output: Path) -> float:
    """Calibrate a model on a device; the seconds that it took."""
    text = ["--calibrate", str(args.text), "--calibrate-tokens", str(args.tokens)]
    began = time.perf_counter()
    named = ["-t", type, "--device", device, "-o", str(output)]
    tqgguf("quantize", str(args.model), *text, *named, "--quiet")
    print(f"{type} {device}: {time.perf_counter() - began:.1f} s", flush=True)
    return time.perf_counter() - began


def tqgguf(*arguments: str) -> str:
    """What the program prints."""
    command = [sys.executable, "-m", "tqgguf", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def drawn(seed: int, shape: tuple[int, ...], start: int, stop: int) -> F32:
    """Rows of a tensor: 1 for gains, else Gaussian, the same whenever they are read."""
    size = (stop - start, shape[-1])
    if len(shape) == 1:
        return np.ones(size, np.float32)
    return np.random.default_rng([seed, start]).standard_normal(size, np.float32) * np.float32(STD)


if __name__ == "__main__":
    main()
