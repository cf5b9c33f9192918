"""`tqgguf inspect`: what a model file holds."""

from pathlib import Path
from typing import Annotated, Any

import typer
from gguf import GGUFValueType

from tqgguf.cli.application import app
from tqgguf.cli.console import say, say_json, say_table
from tqgguf.models import Model, open_model

_LONGEST = 8  # values of an array that are shown


@app.command()
def inspect(
    model: Annotated[Path, typer.Argument(help="A .gguf file, its first shard, or a folder.")],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show the header, the tensors and the rotation metadata of a model.

    Example: tqgguf inspect model-TQ-Q4.gguf
    """
    opened = open_model(model)
    if json:
        say_json(_document(opened))
        return
    for key in opened.metadata:
        say(f"{key} = {_short(opened, key)}")
    rows = [[t.name, t.type, " x ".join(map(str, t.shape))] for t in opened.tensors.values()]
    say_table(["tensor", "type", "shape (out x in)"], rows)


def _document(model: Model) -> dict[str, Any]:
    tensors = [{"name": t.name, "type": t.type, "shape": t.shape} for t in model.tensors.values()]
    return {
        "path": str(model.path),
        "metadata": {key: model.get(key) for key in model.metadata},
        "tensors": tensors,
    }


def _short(model: Model, key: str) -> str:
    value = model.get(key)
    if model.metadata[key].type != GGUFValueType.ARRAY or len(value) <= _LONGEST:
        return str(value)
    return f"[{', '.join(map(str, value[:_LONGEST]))}, ... {len(value):,} values]"
