"""Situations that a healthy model gets into: rules of types, importance files, folders, outputs.

Each function draws one from a seeded generator; `tests.fuzz` runs them. What a user did not name is
never replaced, whatever is drawn: `snapshot` before and after says so.
"""

import json
import os
import random
import socket
import stat
import struct
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import gguf
import numpy as np

Random = random.Random
Snapshot = dict[Path, tuple[int, bytes]]

_PATTERNS = ["attn", "ffn", r"blk\.0\.", ".*", "norm", "ATTN_Q", "atn_q", "attn_q=q8_0,attn_k"]
_PATTERNS += ["weight$", "output", "token_embd", "(?i)Q", "[", "a{3", "\\", "^$", "*", "(?P<a>x)"]
_PATTERNS += ["", " ", "ü", "(a|b)*c", "(?=attn)", "down|up", "bias"]
_TYPES = ["q8_0", "Q4_0", "f16", "F32", "bf16", "iq4_nl", "q4_k", "q4_k_m", "copy", "", "i32"]
_ODD: list[Any] = [None, True, -1, 0, 1e308, "", "yarn", [], {}, float("nan"), "x" * 200, 2**70]


def rules(rng: Random) -> list[str]:
    """Rules of --tensor-type and the options that name a table's type."""
    words = []
    for _ in range(rng.choice([0, 1, 1, 2, 4])):
        words += ["--tensor-type", f"{rng.choice(_PATTERNS)}={rng.choice(_TYPES)}"]
    for option in ("--output-type", "--token-embedding-type"):
        if rng.random() < 0.2:
            words += [option, rng.choice(_TYPES)]
    return words


def importance(rng: Random, path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Path:
    """An importance matrix of either form, of some of these tensors, or what looks like one."""
    numbers = np.random.default_rng(rng.randrange(2**32))
    entries = {}
    for name, shape in shapes.items():
        if len(shape) > 1 and rng.random() < 0.8:
            n_in = shape[-1] if rng.random() < 0.95 else rng.choice([0, 1, 7, shape[-1] + 1])
            x = numbers.random((shape[0] if len(shape) == 3 else 1, n_in), np.float32)
            if rng.random() < 0.05 and x.size:
                x.flat[0] = rng.choice([np.nan, np.inf, -1, 0, 3e38])
            entries[name if rng.random() < 0.95 else f"v.{name}"] = x
    write = _write_legacy if rng.random() < 0.5 else _write_gguf
    write(rng, path, entries)
    data = bytearray(path.read_bytes())
    if rng.random() < 0.2 and data:
        kind = rng.randrange(3)
        if kind == 0:
            del data[rng.randrange(len(data)) :]
        elif kind == 1:
            data[rng.randrange(len(data))] = rng.randrange(256)
        else:
            data[:4] = struct.pack("<i", rng.choice([-1, 0, 1, 2**31 - 1]))
    path.write_bytes(bytes(data))
    return path


def _write_legacy(rng: Random, path: Path, entries: Mapping[str, np.ndarray]) -> None:
    calls = rng.choice([1, 10, 0, -1])
    data = struct.pack("<i", len(entries))
    for name, x in entries.items():
        data += struct.pack("<i", len(name)) + name.encode()
        data += struct.pack("<ii", calls, x.size) + x.astype("<f4").tobytes()
    path.write_bytes(data + (struct.pack("<ii", calls, 4) + b"text" if rng.random() < 0.5 else b""))


def _write_gguf(rng: Random, path: Path, entries: Mapping[str, np.ndarray]) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type(rng.choice(["imatrix", "model", ""]))
    writer.add_uint32("imatrix.chunk_size", rng.choice([512, 0, 2**32 - 1]))
    if rng.random() < 0.2:
        writer.add_string("tqgguf.imatrix.basis", rng.choice(["none", "fused", "", "x" * 99]))
    for name, x in entries.items():
        if x.size:
            counts = np.full((len(x), 1), rng.choice([512, 1, 0]), np.float32)
            writer.add_tensor(f"{name}.in_sum2", x)
            if rng.random() < 0.98:
                writer.add_tensor(f"{name}.counts", counts)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def rope(rng: Random) -> dict[str, Any]:
    """A rotary dictionary as config.json files have them, most of it sensible."""
    kinds = ["default", "linear", "dynamic", "yarn", "llama3", "longrope", "su", "mrope", "odd", 3]
    values: dict[str, list[Any]] = {
        "factor": [2.0, 4, 1, 0, -1],
        "rope_theta": [10000.0, 1e6, 0],
        "original_max_position_embeddings": [32, 64, 0, 2.5],
        "low_freq_factor": [1.0, 4.0],
        "high_freq_factor": [4.0, 1.0],
        "attention_factor": [1.2, 0],
        "beta_fast": [32, 1],
        "beta_slow": [1, 32],
        "mscale": [1.0, 0.7, 0],
        "mscale_all_dim": [1.0, 0.7, 0],
        "truncate": [True, False],
        "short_factor": [[1.0] * 8, [1.0], []],
        "long_factor": [[2.0] * 8, [1.0], []],
        "mrope_section": [[2, 3, 3], [1]],
        "partial_rotary_factor": [1.0, 0.5, 2],
        "odd_key": [1],
    }
    chosen = {rng.choice(["type", "rope_type"]): rng.choice(kinds)}
    for key, sensible in values.items():
        if rng.random() < 0.3:
            chosen[key] = rng.choice(sensible) if rng.random() < 0.9 else rng.choice(_ODD)
    return chosen


def rearrange(rng: Random, folder: Path) -> Path:
    """Change where a Hugging Face folder's files lie and what lies beside them; what to open."""
    config = folder / "config.json"
    values = json.loads(config.read_text())
    if rng.random() < 0.6:
        value = rope(rng) if rng.random() < 0.9 else rng.choice(_ODD)
        values[rng.choice(["rope_scaling", "rope_parameters"])] = value
        config.write_text(json.dumps(values))
    pointer = "version https://git-lfs.example/spec/v1\noid sha256:00\nsize 9\n"
    beside = [
        ("adapter_config.json", "{}"),
        ("tokenizer.model", rng.choice(["", pointer, "text"])),
        ("tokenizer.json", rng.choice(["", "{}", "[]", pointer])),
        ("chat_template.jinja", rng.choice(["{{ x }}", "\udcff"])),
        ("model.safetensors.index.json", rng.choice(["{}", '{"weight_map": {"a": "b"}}', "x"])),
        ("model-00002-of-00003.safetensors", rng.choice(["", pointer])),
        ("other.gguf", "GGUF"),
        ("pytorch_model.bin", "PK"),
        ("quantize_config.json", '{"bits": 4}'),
        ("generation_config.json", rng.choice(["{}", "[]", '{"eos_token_id": [1, "x"]}'])),
    ]
    for name, text in rng.sample(beside, rng.choice([0, 1, 1, 2])):
        (folder / name).write_text(text, errors="surrogateescape")
    if rng.random() < 0.1:
        file = rng.choice(sorted(p for p in folder.iterdir() if p.is_file()))
        file.unlink()
        file.mkdir() if rng.random() < 0.5 else file.symlink_to(file.name)
    if rng.random() < 0.3:
        return _into_cache(rng, folder)
    weights = sorted(folder.glob("*.safetensors"))
    return rng.choice(weights) if weights and rng.random() < 0.2 else folder


def _into_cache(rng: Random, folder: Path) -> Path:
    """The layout of the hub's cache: a snapshot of links into blobs."""
    root = folder.parent / "models--org--name"
    snapshot, blobs = root / "snapshots" / "0123abcd", root / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for i, file in enumerate(sorted(folder.iterdir())):
        blob = blobs / f"{i:040x}"
        file.rename(blob)
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
    return rng.choice([snapshot, snapshot, root, snapshot / "model.safetensors"])


def target(rng: Random, place: Path, name: str, inputs: Iterable[Path]) -> str:
    """The name of an output that may be free, taken, or no place for a file at all."""
    odd = ["no/such/o.gguf", "x" * 300, "a\nb", "-o", "\udcff.gguf", "ü→", ".", "..", "a/../b"]
    path, source = place / name, rng.choice(list(inputs))
    kind = rng.choice(["free", "free", "free", "odd", "input", *_OCCUPIED])
    if kind == "odd":
        return f"{place}/{rng.choice(odd)}"
    if kind == "input":
        return str(source)
    if kind in _OCCUPIED:
        with suppress(OSError):  # an output drawn before may be there
            _OCCUPIED[kind](path, source)
    return str(path)


def _bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


# What is where an output is to be; source: a file that is read.
_OCCUPIED: dict[str, Callable[[Path, Path], object]] = {
    "file": lambda path, _: path.write_text("mine"),
    "link to an input": lambda path, source: path.symlink_to(source),
    "input by another name": lambda path, source: os.link(source, path),
    "folder": lambda path, _: path.mkdir(),
    "link to a device": lambda path, _: path.symlink_to("/dev/null"),
    "link to nothing": lambda path, _: path.symlink_to("nowhere"),
    "link to itself": lambda path, _: path.symlink_to(path.name),
    "link to a folder": lambda path, _: path.symlink_to(path.parent),
    "pipe": lambda path, _: os.mkfifo(path),
    "socket": lambda path, _: _bind(path),
    "unfinished": lambda path, source: _beside(path, ".partial").symlink_to(source),
    "journal": lambda path, source: _beside(path, ".partial.journal").symlink_to(source),
    "folder of that name": lambda path, _: _beside(path, ".partial").mkdir(),
}


def snapshot(place: Path) -> Snapshot:
    """Kind and content of everything below a folder, links as links."""
    found = {}
    for path in place.rglob("*"):
        mode = os.lstat(path).st_mode
        if stat.S_ISLNK(mode):
            content = os.fsencode(path.readlink())
        else:
            content = path.read_bytes() if stat.S_ISREG(mode) else b""
        found[path] = (stat.S_IFMT(mode), content)
    return found


def lost(before: Snapshot, after: Snapshot, *, named: Iterable[str], inputs: Iterable[Path]) -> str:
    """What was replaced or removed without having been named as an output, or nothing.

    A regular file or a link that was named may have been replaced, unless it is an input.
    """
    read = {path.resolve() for path in inputs}
    may = {Path(os.path.normpath(name)) for name in named} - read
    for path, (kind, content) in before.items():
        replaceable = path in may and kind in (stat.S_IFREG, stat.S_IFLNK)
        if after.get(path) != (kind, content) and not replaceable:
            return f"{path} was {'replaced' if path in after else 'removed'}"
    return ""
