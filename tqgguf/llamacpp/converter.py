"""Hugging Face folders whose class has no row of ours, through llama.cpp's own converter.

It runs as a program of its own, in a Python that has torch and transformers, and writes a BF16 file
beside the output, which is then quantized like any other GGUF. That file stays until the output is
whole, so that a run that was cut off goes on.
"""

import os
import shutil
import sys
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from tqgguf.errors import OutputError, ToolError, TqggufError, UnknownClassError
from tqgguf.llamacpp import tools
from tqgguf.models import Model, model_files, open_model
from tqgguf.models.hub import display_name
from tqgguf.output.files import check_output

PATIENCE = 1800.0  # seconds without a word or a byte after which the converter is given up
_FETCH = "fetch it with: scripts/build_llama_cpp.sh converter"
_AS_BF16 = {"F32": 0.5, "F8_E4M3": 2, "F8_E5M2": 2, "I32": 4, "U8": 4}  # bytes for a stored one


@dataclass(frozen=True)
class Conversion:
    """How a folder is converted: by which program, in which Python, beside which output."""

    output: Path
    converter: Path | None = None
    python: Path | None = None
    resume: bool = False
    force: bool = False  # the output may exist


def find_converter(chosen: Path | None = None) -> Path | None:
    """The converter: the chosen one, $TQGGUF_CONVERTER, or the build cache's; None without any.

    Raises ToolError if one was named and is not there.
    """
    named = os.environ.get("TQGGUF_CONVERTER")
    if chosen or named:
        path = chosen or Path(str(named))
        if path.is_file():
            return path
        said = "--converter" if chosen else "$TQGGUF_CONVERTER"
        raise ToolError(f"{said}: {path}: no such file; expected convert_hf_to_gguf.py; {_FETCH}")
    path = tools.built_tools().parent / "convert_hf_to_gguf.py"
    return path if path.is_file() else None


def open_any(path: Path, conversion: Conversion, *, vocab_from: Path | None = None) -> Model:
    """`open_model`, or for a class that is not ours the model that the converter makes of a folder.

    Raises UnknownClassError where there is no converter, ToolError for one that fails, OutputError
    where the disk is too small for its file.
    """
    try:
        model = open_model(path, vocab_from=vocab_from)
    except UnknownClassError as error:
        converter = find_converter(conversion.converter)
        if converter is None or (not error.official and conversion.converter is None):
            raise
        made = _through(converter, path, error.name, conversion)
        own = f"{path}: the tokenizer is the converter's, so --vocab-from is not used"
        return made if vocab_from is None else replace(made, notes=(*made.notes, own))
    given = {"--converter": conversion.converter, "--converter-python": conversion.python}
    unused = " and ".join(option for option, value in given.items() if value is not None)
    line = f"{path}: converted natively, so {unused} is not used"
    return replace(model, notes=(*model.notes, line)) if unused else model


def temporary(folder: Path, output: Path) -> Path:
    """Where the converter's file for an output lies: its name tells the folder's state."""
    said = "".join(f"{p.name} {p.stat().st_size} {p.stat().st_mtime_ns};" for p in _files(folder))
    key = sha256(os.fsencode(said)).hexdigest()[:12]
    return output.with_name(f"{output.stem}.bf16-{key}.gguf")


def discard(model: Model) -> None:
    """Delete the converter's file once the output is whole; other models are left alone."""
    if model.converted_from is not None:
        model.path.unlink(missing_ok=True)


def _files(folder: Path) -> list[Path]:
    return [*model_files(folder), *sorted(folder.glob("*.bin"))]


def _through(converter: Path, path: Path, name: str, conversion: Conversion) -> Model:
    if not path.is_dir():
        raise ToolError(f"{path}: {name} goes through llama.cpp's converter; give the folder")
    made = temporary(path, conversion.output)
    try:
        if not (conversion.resume and made.is_file()):
            _convert(converter, path, made, conversion)
        model = _sound(converter, made)
    except ToolError as error:
        raise ToolError(f"{path}: {name} cannot be converted natively, and {error}") from None
    note = f"{path}: {name} has no row of ours; llama.cpp's converter made {made} of it"
    return replace(model, notes=(note,), converted_from=path)


def _sound(converter: Path, made: Path) -> Model:
    """The model in the converter's file, which is deleted if it holds none."""
    try:
        return open_model(made)
    except TqggufError as error:
        made.unlink(missing_ok=True)
        raise ToolError(f"{converter} wrote no sound GGUF file: {error}") from None


def _convert(converter: Path, folder: Path, made: Path, conversion: Conversion) -> None:
    if not conversion.force:
        check_output(conversion.output, inputs=[], force=False)  # before the hours it may take
    _check_disk(folder, made)
    python = _python(conversion.python)
    unfinished = made.with_name(made.name + ".partial")
    names = ["--model-name", display_name(folder)]
    argv: list[str | Path] = [
        python,
        converter,
        folder,
        "--outtype",
        "bf16",
        "--outfile",
        unfinished,
        *names,
    ]
    try:
        status, output = tools.run_watched(
            str(converter), argv, lambda: _size(unfinished), patience=PATIENCE
        )
        if status or not unfinished.is_file():
            how = tools.fate(status) if status else "wrote nothing"
            raise ToolError(f"{converter} {how}{_last_error(output)}")
        unfinished.replace(made)
    finally:
        unfinished.unlink(missing_ok=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _last_error(output: tools.ToolOutput) -> str:
    """The last line of a traceback or log, as ": text", or nothing."""
    lines = [line.strip() for line in output.stderr.splitlines() if line.strip()]
    return f": {lines[-1].removeprefix('ERROR:hf-to-gguf:')[:300]}" if lines else ""


def _python(chosen: Path | None) -> Path:
    """A Python that has torch and transformers; ToolError if the chosen one, or ours, has not."""
    python = chosen or Path(os.environ.get("TQGGUF_CONVERTER_PYTHON") or sys.executable)
    argv: list[str | Path] = [python, "-c", "import torch, transformers"]
    status, output = tools.run_watched(str(python), argv, lambda: 0, patience=600)
    if status:
        raise ToolError(
            f"{python}, which is to run llama.cpp's converter, cannot import torch and transformers"
            f"{_last_error(output)}; install them, or name another with --converter-python"
        )
    return python


def _check_disk(folder: Path, made: Path) -> None:
    if not made.parent.is_dir():
        raise OutputError(f"{made}: the folder {made.parent} does not exist")
    need, free = _bf16_bytes(folder), shutil.disk_usage(made.parent).free
    if need > free:
        raise OutputError(
            f"{made}: the BF16 model needs {need / 1e9:.1f} GB beside the output, but "
            f"{free / 1e9:.1f} GB are free; choose another disk with --output"
        )


def _bf16_bytes(folder: Path) -> float:
    """Bytes of the folder's weights as BF16; of files that say nothing of them, their size."""
    from tqgguf.models.huggingface.safetensors import read_weights  # slow to import

    try:
        weights = read_weights(folder).values()
    except TqggufError:
        return sum(p.stat().st_size for p in _files(folder))
    return sum(w.array.nbytes * _AS_BF16.get(w.dtype, 1) for w in weights)
