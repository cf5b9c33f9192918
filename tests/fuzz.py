"""Damage model files in every way that comes to mind and watch what the command line does.

`python -m tests.fuzz COUNT SEED` writes COUNT damaged models, GGUF files and Hugging Face folders,
and gives each to a few commands, also with randomly drawn flags. The only answers allowed are
success and one clear line, within a limit of memory and time. Prints what broke the rules, each
with its number N, which `python -m tests.fuzz 1 N` repeats.
"""

import json
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFValueType

from tests import situations
from tests.cli.story import RUNNER
from tests.models.huggingface.folders import write_folder
from tqgguf.cli import app
from tqgguf.models.metadata import SCALARS, Value, encode
from tqgguf.output.layout import TensorInfo, lay_out
from tqgguf.rotation.rotation import VERSION

MEMORY = 6 << 30  # of address space; Python, NumPy and a mapped model take less than one
SECONDS = 20  # of processor time: other programs may slow this one down
HOSTILE = [0, 1, 2, 3, 7, 31, 32, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**60, 2**63]
HOSTILE += [2**64 - 1]
TEXTS = ["", " ", "llama", "qwen3", "gemma2", "no such", "residual", "gain:output_norm.weight"]
TEXTS += ["gain:", "value block", "\0", "x" * 5000, "%s{arch}", "../../etc", "fused", "ü\u2028"]

Random = random.Random
Model = tuple[dict[str, Value], list[TensorInfo], dict[str, bytes]]


def llama(rng: Random) -> Model:
    """A tiny Llama: its metadata, its tensors and their bytes."""
    keys: dict[str, Any] = {
        "general.architecture": "llama",
        "general.name": "tiny",
        "llama.block_count": 1,
        "llama.embedding_length": 64,
        "llama.feed_forward_length": 96,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.tokens": [f"t{i}" for i in range(64)],
        "tokenizer.ggml.scores": [float(i) for i in range(64)],
    }
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd": (64, 64),
        "blk.0.attn_norm": (64,),
        "blk.0.attn_q": (64, 64),
        "blk.0.attn_k": (32, 64),
        "blk.0.attn_v": (32, 64),
        "blk.0.attn_output": (64, 64),
        "blk.0.ffn_norm": (64,),
        "blk.0.ffn_gate": (96, 64),
        "blk.0.ffn_up": (96, 64),
        "blk.0.ffn_down": (64, 96),
        "output_norm": (64,),
    }
    if rng.random() < 0.5:
        shapes["output"] = (64, 64)
    type = rng.choice(["F32", "F16", "Q8_0", "BF16"])
    infos = [TensorInfo(f"{n}.weight", s, type if len(s) > 1 else "F32") for n, s in shapes.items()]
    numbers = np.random.default_rng(rng.getrandbits(32))
    data = {}
    for info in infos:
        values = numbers.standard_normal(info.n_bytes).astype("<f2" if type == "F16" else "<f4")
        data[info.name] = values.tobytes()[: info.n_bytes]
    metadata = {key: encode(value) for key, value in keys.items()}
    if rng.random() < 0.4:
        metadata |= rotation(list(shapes), rng)
    return metadata, infos, data


def rotation(names: list[str], rng: Random) -> dict[str, Value]:
    """A record of a rotation, right or nearly so."""
    tensors = [f"{name}.weight" for name in names if rng.random() < 0.9]
    steps = ["", "residual", "residual", "value", "gain:output_norm.weight residual", "block"]
    record: dict[str, Any] = {
        "version": VERSION,
        "rotation.mode": rng.choice(["fused", "fused", "tensor", "none", "odd"]),
        "rotation.kind": rng.choice(["sylvester", "sylvester", "regular", "odd"]),
        "rotation.block_size": rng.choice([64, 64, 32, 1, 0, 3, 4096, *HOSTILE[:12]]),
        "rotation.value_block_size": rng.choice([16, 16, 1, 0, 5, *HOSTILE[:12]]),
        "rotation.seed": rng.choice([0, 1, 2**32 - 1]),
        "rotation.tensors": tensors or ["x"],
        "rotation.columns": [rng.choice(steps) for _ in tensors or ["x"]],
        "rotation.rows": [rng.choice(["", "", "residual", "value"]) for _ in tensors or ["x"]],
    }
    length = rng.choice([64, 64, 64, 63, 0, 1])
    keys = {f"tqgguf.{key}": encode(value) for key, value in record.items()}
    vector = encode(np.ones(length, np.float32))
    return keys | {"tqgguf.vector.output_norm.weight": vector}


def serialise(model: Model) -> bytes:
    """The file of a model whose parts may contradict each other."""
    metadata, infos, data = model
    honest = {k: v for k, v in metadata.items() if k != "general.alignment"}
    layout = lay_out(honest, infos)
    file = bytearray(layout.size)
    file[: len(layout.header)] = layout.header
    for info in infos:
        begin = layout.offsets[info.name]
        stored = data.get(info.name, b"")[: info.n_bytes]
        file[begin : begin + len(stored)] = stored
    return bytes(file)


def hostile_value(rng: Random) -> Value:
    """A metadata value of any type, rarely a sensible one."""
    type = rng.choice(list(GGUFValueType))
    if type == GGUFValueType.STRING:
        return encode(rng.choice(TEXTS))
    if type == GGUFValueType.ARRAY:
        items = [hostile_value(rng)] * rng.choice([0, 1, 2, 64])
        if not items:
            return encode([])
        return Value(
            type, struct.pack("<IQ", items[0].type, len(items)) + b"".join(v.raw for v in items)
        )
    raw = rng.choice(
        [
            rng.randbytes(8),
            bytes(8),
            b"\xff" * 8,
            struct.pack("<q", rng.choice([-1, 1, 3, 64, 2**31, 2**40, 2**62])),
            struct.pack("<d", rng.choice([0.0, -1.0, 1e308, float("nan"), float("inf")])),
        ]
    )
    return Value(type, raw[: struct.calcsize(SCALARS[type])])


def damage_keys(rng: Random) -> bytes:
    """Metadata that lies: keys lost, or with values of another kind."""
    metadata, infos, data = llama(rng)
    for _ in range(rng.choice([1, 1, 2, 5])):
        key = rng.choice([*metadata, "general.alignment", "split.count", "tqgguf.version"])
        if rng.random() < 0.2:
            metadata.pop(key, None)
        else:
            metadata[key] = hostile_value(rng)
    return serialise((metadata, infos, data))


def damage_tensors(rng: Random) -> bytes:
    """Tensors of other names, shapes and types than the model needs."""
    metadata, infos, data = llama(rng)
    for _ in range(rng.choice([1, 1, 2, 5])):
        i = rng.randrange(len(infos))
        info = infos[i]
        columns = rng.choice([1, 32, 64, 96, 128, 256, 257])
        shape = (*rng.choices([1, 2, 5, 32, 64], k=rng.randrange(4)), columns)
        name = rng.choice([info.name, info.name, *TEXTS, "blk.0.attn_q.bias", "blk.9.odd.weight"])
        kind = rng.choice([info.type, "F64", "I32", "I8", "BF16", "F16"])
        kind = kind if columns % 32 == 0 else "F32"
        choices = [
            None,
            TensorInfo(name, info.shape, info.type),
            TensorInfo(info.name, shape, kind),
            TensorInfo(info.name, info.shape, kind if info.type != "Q8_0" else info.type),
        ]
        changed = rng.choice(choices)
        infos[i : i + 1] = [] if changed is None or len(infos) == 1 else [changed]
        infos = infos or [info]
    return serialise((metadata, infos, data))


def damage_weights(rng: Random) -> bytes:
    """Weights that are no numbers, or of any size."""
    metadata, infos, data = llama(rng)
    name = rng.choice(infos).name
    fill = rng.choice([b"\xff", b"\x7f", b"\x00", b"\x7b\x7c", rng.randbytes(64)])
    data[name] = (fill * len(data[name]))[: len(data[name])]
    return serialise((metadata, infos, data))


def damage_bytes(rng: Random) -> bytes:
    """Any bytes of the file changed, moved, cut off or doubled; mostly of the header."""
    file = bytearray(serialise(llama(rng)))
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        at = rng.randrange(min(len(file), rng.choice([24, 1000, 4000, len(file)])) or 1)
        size = rng.choice([1, 2, 4, 8, 100])
        kind = rng.randrange(6)
        if kind == 0:
            file[at : at + size] = rng.randbytes(size)
        elif kind == 1:
            file[at : at + 8] = struct.pack("<Q", rng.choice([*HOSTILE, len(file)]))
        elif kind == 2:
            file[at : at + 4] = struct.pack("<I", rng.choice(HOSTILE[:12]))
        elif kind == 3:
            del file[at:]
        elif kind == 4:
            del file[at : at + size]
        else:
            file[at:at] = file[at : at + size]
        if not file:
            break
    return bytes(file)


def damage_json(value: Any, rng: Random) -> Any:
    """A JSON value with one thing in it replaced, lost or put elsewhere."""
    odd = [None, True, -1, 0, 1, 2**40, 1e308, "", "x" * 999, [], {}, [[]], {"a": {}}, 0.5, "F32"]
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        changed = dict(value)
        if rng.random() < 0.15:
            del changed[key]
        elif rng.random() < 0.1:
            changed["odd"] = changed.pop(key)
        else:
            changed[key] = damage_json(value[key], rng)
        return changed
    if isinstance(value, list) and value and rng.random() < 0.85:
        i = rng.randrange(len(value))
        return [*value[:i], damage_json(value[i], rng), *value[i + 1 :]]
    return rng.choice(odd)


def damage_folder(source: Path, target: Path, rng: Random) -> Path:
    """A copy of a Hugging Face folder with one or two of its files damaged."""
    shutil.copytree(source, target)
    for _ in range(rng.choice([1, 1, 2])):
        file = rng.choice(sorted(target.iterdir()))
        if file.suffix == ".safetensors":
            file.write_bytes(damage_safetensors(file.read_bytes(), rng))
        elif file.suffix == ".json" and rng.random() < 0.8:
            text = file.read_text(errors="replace")
            try:
                file.write_text(json.dumps(damage_json(json.loads(text), rng)))
            except ValueError:
                file.write_text(text[: len(text) // 2])
        elif rng.random() < 0.3:
            file.unlink()
        else:
            data = bytearray(file.read_bytes())
            for _ in range(3):
                data[rng.randrange(len(data) or 1) : rng.randrange(len(data) or 1)] = b"\xfe{["
            file.write_bytes(bytes(data))
        if not any(target.iterdir()):
            break
    return target


def damage_safetensors(data: bytes, rng: Random) -> bytes:
    """A .safetensors file whose header lies, or any bytes of which are changed."""
    try:
        (size,) = struct.unpack_from("<Q", data)
        header = json.loads(data[8 : 8 + size])
    except (ValueError, struct.error):
        return rng.randbytes(40)
    kind = rng.randrange(5)
    if kind == 0:
        return data[: rng.randrange(len(data))]
    if kind == 1:
        return struct.pack("<Q", rng.choice(HOSTILE)) + data[8:]
    if kind == 2:
        file = bytearray(data)
        for _ in range(4):
            file[rng.randrange(min(len(file), size + 8))] = rng.randrange(256)
        return bytes(file)
    text = json.dumps(damage_json(header, rng)).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


GGUF = [damage_keys, damage_tensors, damage_weights, damage_bytes, damage_bytes]


def flags(rng: Random) -> list[str]:
    """Options of quantize, in any combination, most of them sensible."""
    drawn: list[list[str]] = [
        ["--type", rng.choice(["tq-q4", "Q8_0", "q4_0", "F32", "iq2_xs", "odd", "", "q4_k_m"])],
        ["--effort", rng.choice(["fast", "fast", "good", "best", "odd"])],
        ["--rotate", rng.choice(["fused", "none", "tensor", "values", "auto", "odd"])],
        ["--effort", rng.choice(["fast", "good", "odd"])],
        ["--block", rng.choice(["auto", "16", "64", "3", "0", "-1", "9" * 30, "x"])],
        ["--seed", rng.choice(["0", "7", "-1", "9" * 30])],
        ["--tensor-type", rng.choice(["attn=Q8_0", "=", "(=Q4_0", "x", ".*=F16", "norm=Q4_0"])],
        ["--output-type", rng.choice(["Q8_0", "F32", "odd"])],
        ["--token-embedding-type", rng.choice(["Q8_0", "BF16", "odd"])],
        ["--threads", rng.choice(["1", "2", "0", "-3", "x"])],
        ["--max-memory", rng.choice(["4G", "1GiB", "1", "0", "-1", "x", "9" * 30, "1e9"])],
        ["--split-max-size", rng.choice(["10K", "1", "0", "4G", "-4", "K"])],
        ["--split-max-tensors", rng.choice(["1", "3", "0", "99999999999"])],
        ["--allow-requantize"],
        ["--strict"],
        ["--resume"],
        ["--force"],
        ["--dry-run"],
        ["--json"],
        ["--quiet"],
        ["--verbose"],
    ]
    chosen = [flag for flag in drawn if rng.random() < 0.25]
    rng.shuffle(chosen)
    return [word for flag in chosen for word in flag]


def commands(model: Path, good: Path, out: Path, rng: Random) -> Iterator[list[str]]:
    """What a damaged model is given to."""
    out_options = ["-o", str(out), "--force"]
    yield ["inspect", str(model), *(["--json"] if rng.random() < 0.5 else [])]
    yield ["quantize", str(model), *out_options, *flags(rng)]
    others = [
        ["plan", str(model)],
        ["quantize", str(model), *out_options, "--allow-requantize"],
        ["quantize", str(model), *out_options, "--rotate", "none", "--type", "Q8_0"],
        ["verify", str(model), str(good)],
        ["verify", str(good), str(model)],
        ["dequantize", str(model), *out_options],
        ["compare", str(good), str(model)],
        ["report", "mse", str(model), "--types", "Q4_0"],
    ]
    yield from rng.sample(others, 2)


def complaint(arguments: list[str]) -> str:
    """Run a command; what is wrong with its answer, or nothing."""
    return answer(arguments)[1]


def answer(arguments: list[str]) -> tuple[int, str]:
    """Run a command; its exit status, and what is wrong with its answer or nothing."""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(30 * SECONDS)
    try:
        result = RUNNER.invoke(app, arguments)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
    error = result.exception
    if error is not None and not isinstance(error, SystemExit):
        return result.exit_code, "".join(traceback.format_exception(error)[-7:])
    if result.exit_code not in (0, 1, 2):
        return result.exit_code, f"exit status {result.exit_code}"
    lines = result.stderr.splitlines()
    if result.exit_code == 1 and not (lines and lines[-1].startswith("error: ")):
        return 1, f"status 1 without an error line: {result.output[-500:]}"
    return result.exit_code, ""


def _too_long(*_: object) -> None:
    raise AssertionError(f"no answer within {SECONDS} seconds")


class Fuzz:
    """One folder of undamaged models and the cases made from them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.huggingface = folder / "hf"
        write_folder(self.huggingface)
        self.good = folder / "good.gguf"
        self.good.write_bytes(serialise(llama(Random(1))))
        self.answers: Counter[int] = Counter()

    def case(self, number: int) -> Iterator[str]:
        """Make one damaged model and yield what goes wrong with it."""
        rng = Random(number)
        place = self.folder / "case"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        if number % 4 == 1:
            yield from self._situation(number, rng, place)
            return
        if number % 8 == 0:
            model = situations.rearrange(rng, shutil.copytree(self.huggingface, place / "hf"))
        elif number % 8 == 4:
            model = damage_folder(self.huggingface, place / "hf", rng)
        else:
            model = place / rng.choice(["m.gguf", "m.gguf", "m-00001-of-00001.gguf"])
            damage: Callable[[Random], bytes] = rng.choice(GGUF)
            model.write_bytes(damage(rng))
        for arguments in commands(model, self.good, place / "out.gguf", rng):
            wrong = complaint(arguments)
            if wrong:
                yield f"case {number}: tqgguf {' '.join(arguments)}\n{wrong}"

    def _situation(self, number: int, rng: Random, place: Path) -> Iterator[str]:
        """A healthy model among odd rules, importance files and outputs: what goes wrong."""
        model, text = place / "m.gguf", place / "text.txt"
        metadata, infos, data = llama(rng)
        healthy = {k: v for k, v in metadata.items() if not k.startswith("tqgguf.")}
        model.write_bytes(serialise((healthy, infos, data)))
        text.write_text("To be or not to be. " * 20)
        shapes = {info.name: info.shape for info in infos}
        inputs = [model, text, situations.importance(rng, place / "imatrix", shapes)]
        outputs = [situations.target(rng, place, "out.gguf", inputs)]
        words = ["quantize", str(model), "-o", outputs[0], *situations.rules(rng), *flags(rng)]
        if rng.random() < 0.5:
            words += ["--imatrix", str(inputs[2])]
        if rng.random() < 0.3:
            other = situations.target(rng, place, rng.choice(["i.gguf", "out.gguf"]), inputs)
            outputs.append(other)
            words += ["--calibrate", str(text), "--save-imatrix", other]
        other = ["dequantize", str(model), "-o", outputs[0], *rng.choice([[], ["--force"]])]
        if rng.random() < 0.2:  # a picture takes as long as twenty other answers
            other = ["report", "mse", str(model), "--types", "Q4_0", "--plot", f"{outputs[0]}.svg"]
        for arguments in [words, other]:
            before = situations.snapshot(place)
            status, wrong = answer(arguments)
            named = [*outputs, f"{outputs[0]}.svg"]
            after = situations.snapshot(place)
            read = inputs if arguments is words else [model]
            wrong = wrong or situations.lost(before, after, named=named, inputs=read)
            if not wrong and not status and Path(outputs[0]).is_file() and "--split" not in words:
                wrong = self._unsound(model, Path(outputs[0]), arguments)
            if wrong:
                yield f"case {number}: tqgguf {' '.join(arguments)}\n{wrong}"

    def _unsound(self, model: Path, made: Path, arguments: list[str]) -> str:
        """Why what was made is not the model, or nothing."""
        if arguments[0] != "quantize" or "--dry-run" in arguments:
            return ""
        result = RUNNER.invoke(app, ["verify", str(made), str(model)])
        return "" if result.exit_code == 0 else f"verify: {result.output[-300:]}"


def main() -> None:
    """Run the cases; exit status 1 where one broke the rules."""
    count, seed = map(int, sys.argv[1:3])
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for alarm in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(alarm, _too_long)
    warnings.simplefilter("error")
    found = 0
    with tempfile.TemporaryDirectory() as folder:
        fuzz = Fuzz(Path(folder))
        for number in range(seed, seed + count):
            for text in fuzz.case(number):
                found += 1
                print(text, flush=True)  # noqa: T201
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(f"{count} damaged models, {found} bad answers, {peak} MiB at most")  # noqa: T201
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
