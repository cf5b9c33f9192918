"""`tqgguf inspect`: what a model file is, in one screen; its tensors and its header when asked."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from gguf import GGUFValueType, LlamaFileType

from tqgguf.cli.application import app
from tqgguf.cli.console import quoted, say, say_fact, say_json, say_table
from tqgguf.machine.memory import readable_size
from tqgguf.models import Model, open_model
from tqgguf.models.gguf import disk_bytes
from tqgguf.models.hub import display_name
from tqgguf.network.memory import Memory, memory
from tqgguf.rotation.recorded import read_rotation
from tqgguf.rotation.rotation import PREFIX
from tqgguf.rotation.words import in_words

_LONGEST = 8  # values of an array that are shown
_MOST_TOKENS = 2**31 - 1  # llama.cpp's -c is a 32-bit number


@app.command()
def inspect(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A .gguf file, its first shard, or a folder.")
    ],
    context: Annotated[
        int | None,
        typer.Option(
            "--ctx",
            min=1,
            max=_MOST_TOKENS,
            metavar="N",
            help="Tokens of context that the memory is told for; 4096 if unset.",
        ),
    ] = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="List the tensors.")] = False,
    header: Annotated[bool, typer.Option("--header", help="List the metadata.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show what a file is, what was done to it, the memory it needs and how to run it.

    Example: tqgguf inspect model-TQ-Q4.gguf --ctx 8192
    """
    if context is not None and (tensors or header) and not json:
        raise typer.BadParameter("--ctx is for the summary; leave out --tensors and --header")
    opened = open_model(model)
    if json:
        say_json(_document(opened, context))
        return
    if not (tensors or header):
        _say_summary(opened, context)
    for key in opened.metadata if header else ():
        say(f"{key} = {_short(opened, key)}")
    if tensors:
        rows = [[t.name, t.type, " x ".join(map(str, t.shape))] for t in opened.tensors.values()]
        say_table(["tensor", "type", "shape (out x in)"], rows)


def _say_summary(model: Model, context: int | None) -> None:
    """A line for each thing that a downloader wants to know, and what the file records."""
    need = memory(model, context)
    lines = {
        "model": _name(model),
        "file": f"{_size(model)}, {_bpw(model):.2f} bits per weight: {_types(model)}",
        "recipe": _recipe(model),
        "rotation": in_words(read_rotation(model)),
        "text": _text(model),
        "memory": _memory(need),
    }
    for label, line in lines.items():
        say_fact(label, line)
    say(f"run it    {_command(model, need)}")
    for key, value in model.metadata.items():
        if key.startswith(PREFIX) and value.type != GGUFValueType.ARRAY:
            say(f"{key} = {model.get(key)}")


def _name(model: Model) -> str:
    weights = sum(t.size for t in model.tensors.values())
    trained = model.get("{arch}.context_length")
    length = f", trained on contexts of {trained:,} tokens" if isinstance(trained, int) else ""
    name = model.get("general.name") or display_name(model.path)
    return f"{name}, {model.architecture}, {weights / 1e6:,.1f} million weights{length}"


def _size(model: Model) -> str:
    is_file = model.path.suffix == ".gguf"
    return readable_size(disk_bytes(model.path) if is_file else model.n_bytes)


def _bpw(model: Model) -> float:
    return 8 * model.n_bytes / max(1, sum(t.size for t in model.tensors.values()))


def _types(model: Model) -> str:
    counts = Counter(t.type for t in model.tensors.values() if len(t.shape) > 1)
    return ", ".join(f"{count} {type}" for type, count in counts.most_common()) or "no matrices"


def _recipe(model: Model) -> str:
    """Ours, or what llama.cpp's tools call the mixture."""
    ours = model.get(f"{PREFIX}recipe")
    if ours is not None:
        return f"{ours} of tqgguf"
    told = model.get("general.file_type")
    known = {str(int(t)): t.name.removeprefix("MOSTLY_") for t in LlamaFileType}
    return f"{known.get(str(told), 'unknown')}, not made by tqgguf"


def _text(model: Model) -> str:
    """What its rounding went by."""
    on = model.get(f"{PREFIX}measured_on")
    if model.get(f"{PREFIX}calibration"):
        return f"rounded with error feedback on {on or 'a text'}"
    if model.get(f"{PREFIX}imatrix"):
        return f"errors weighed by {f'what was measured on {on}' if on else 'an importance matrix'}"
    return "none is recorded"


def _memory(need: Memory | None) -> str:
    if need is None:
        return "unknown: the header does not say what its attention keeps"
    most = " at most" if need.is_most else ""
    return (
        f"{readable_size(need.total)}{most} at a context of {need.context:,} tokens: "
        f"{readable_size(need.weights)} weights, {readable_size(need.cache)} attention's cache; "
        "plus what llama.cpp computes with"
    )


def _command(model: Model, need: Memory | None) -> str:
    if model.instead:
        return f"not in llama.cpp: it is {model.instead}"
    if model.path.suffix != ".gguf":
        return f"convert it first: tqgguf quantize {quoted(model.path)}"
    if read_rotation(model).mode == "tensor":
        return "not in llama.cpp: its inputs would have to be turned"
    return f"llama-cli -m {quoted(model.path)}{f' -c {need.context}' if need else ''}"


def _document(model: Model, context: int | None) -> dict[str, Any]:
    tensors = [{"name": t.name, "type": t.type, "shape": t.shape} for t in model.tensors.values()]
    need = memory(model, context)
    return {
        "path": str(model.path),
        "recipe": model.get(f"{PREFIX}recipe"),
        "bpw": _bpw(model),
        "rotation": read_rotation(model).mode,
        "text": model.get(f"{PREFIX}measured_on"),
        "memory": asdict(need) | {"total": need.total} if need else None,
        "metadata": {key: model.get(key) for key in model.metadata},
        "tensors": tensors,
    }


def _short(model: Model, key: str) -> str:
    value = model.get(key)
    if model.metadata[key].type != GGUFValueType.ARRAY or len(value) <= _LONGEST:
        return str(value)
    return f"[{', '.join(map(str, value[:_LONGEST]))}, ... {len(value):,} values]"
