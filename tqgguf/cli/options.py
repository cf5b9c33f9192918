"""Options that several commands share, and how they become library values."""

import re
from pathlib import Path
from typing import Annotated

import typer

from tqgguf.errors import PlanError
from tqgguf.plan import Options

Model = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL", help="A .gguf file (or its first shard), a folder, or .safetensors."
    ),
]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="The file to write; beside MODEL if unset.")
]
Type = Annotated[
    str, typer.Option("--type", "-t", help="A recipe (tq-q4, tq-q3, tq-q2) or any GGUF type.")
]
Rotate = Annotated[str, typer.Option(help="fused, auto, tensor, none or values.")]
Block = Annotated[
    str, typer.Option(help="Hadamard order: a power of two that divides the width, or auto.")
]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of the rotation's signs.")]
TensorType = Annotated[
    list[str] | None,
    typer.Option(metavar="REGEX=TYPE", help="Type of matching tensors; may be repeated."),
]
OutputType = Annotated[str | None, typer.Option(help="Type of the output head.")]
EmbeddingType = Annotated[str | None, typer.Option(help="Type of the token embedding.")]
Strict = Annotated[bool, typer.Option("--strict", help="A fallback to another type is an error.")]
Requantize = Annotated[
    bool, typer.Option("--allow-requantize", help="Accept weights that are quantized already.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="Worker threads; one per core if unset.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite the output.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]


def plan_options(
    *,
    type: str,
    rotate: str,
    block: str,
    seed: int,
    tensor_type: list[str] | None,
    output_type: str | None,
    token_embedding_type: str | None,
    strict: bool,
    allow_requantize: bool,
) -> Options:
    """Turn command line options into the plan's."""
    return Options(
        type=type,
        rotate=rotate.lower(),
        block=block_order(block),
        seed=seed,
        tensor_types=[_tensor_type(text) for text in tensor_type or []],
        output_type=output_type,
        token_embedding_type=token_embedding_type,
        strict=strict,
        allow_requantize=allow_requantize,
    )


def block_order(text: str) -> int | None:
    """A Hadamard order, or None for auto."""
    if text.lower() == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(f"{text!r} is neither a positive number nor auto")
    return int(text)


def _tensor_type(text: str) -> tuple[str, str]:
    pattern, equals, type = text.rpartition("=")
    if not equals or not pattern:
        raise typer.BadParameter(f"{text!r} is not REGEX=TYPE")
    try:
        re.compile(pattern)
    except re.error as error:
        raise PlanError(f"--tensor-type {pattern!r} is no regular expression: {error}") from None
    return pattern, type
