"""Options that several commands share, and how they become library values."""

import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from functools import partial, wraps
from itertools import chain, starmap
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from tqgguf.errors import PlanError
from tqgguf.machine.machine import Machine
from tqgguf.output.layout import Split
from tqgguf.planning.plan import Options

_SIZE = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<unit>|[KMGT]I?)B?", re.IGNORECASE)
_UNITS = {"": 1, **{u: 1000**i for i, u in enumerate("KMGT", 1)}}
_UNITS |= {f"{u}I": 1024**i for i, u in enumerate("KMGT", 1)}


def block_order(text: str) -> int | None:
    """A Hadamard order, or None for auto."""
    if text.lower() == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(f"{text!r} is neither a positive number nor auto")
    return int(text)


def byte_size(text: str) -> int:
    """Bytes of a size such as 4G, 3.9GB, 500M (powers of 1000, as llama.cpp's tools) or 4GiB."""
    match = _SIZE.fullmatch(text.strip())
    size = float(match["number"]) * _UNITS[match["unit"].upper()] if match else 0
    if not match or not 1 <= size < 2**63:
        raise typer.BadParameter(f"{text!r} is no size such as 4G, 500M or 4GiB")
    return int(size)


def _seed(given: str | int) -> int:
    text = str(given)  # Typer has the default parsed as well
    if not text.isdecimal() or int(text) >= 2**32:
        raise typer.BadParameter(f"{text!r} is no whole number from 0 to {2**32 - 1}")
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


# The panels of --help, in order.
_types = partial(typer.Option, rich_help_panel="Types")
_text = partial(typer.Option, rich_help_panel="Text and importance")
_rotation = partial(typer.Option, rich_help_panel="Rotation")
_file = partial(typer.Option, rich_help_panel="The file")
_machine = partial(typer.Option, rich_help_panel="The machine")
_print = partial(typer.Option, rich_help_panel="What to print")

ModelPath = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        help="A .gguf file (or its first shard), a folder, .safetensors, or org/name on the hub.",
    ),
]
Quantized = Annotated[Path, typer.Argument(metavar="QUANT", help="The finished file.")]
_block = _rotation(
    parser=block_order,
    metavar="N",
    help="Hadamard order: a power of two that divides the width; auto, the largest, if unset.",
)
_seed_option = _rotation(parser=_seed, metavar="N", help="Seed of the rotation's signs.")
Block = Annotated[Any, _block]
Seed = Annotated[Any, _seed_option]
OutputFile = Annotated[
    Path | None,
    _file("--output", "-o", metavar="FILE", help="The file to write; beside MODEL if unset."),
]
VocabFrom = Annotated[
    Path | None,
    _file(metavar="GGUF", help="Take the tokenizer from this file, not from the folder."),
]
Converter = Annotated[
    Path | None,
    _file(metavar="FILE", help="llama.cpp's converter, for classes that have no row of ours."),
]
ConverterPython = Annotated[
    Path | None, _file(metavar="FILE", help="A Python that has torch and transformers, for it.")
]
SaveImatrix = Annotated[
    Path | None,
    _text(metavar="FILE", help="Write the importance matrix of the text that was used."),
]
Resume = Annotated[bool, _file("--resume", help="Go on with what an interrupted run left.")]
Force = Annotated[bool, _file("--force", help="Overwrite the output.")]
_threads = _machine(min=1, metavar="N", help="Worker threads; one per core if unset.")
Threads = Annotated[int | None, _threads]
_device = _machine(
    parser=str.lower, metavar="WHERE", help="Compute on cpu, cuda, or auto: cuda if there is one."
)
DeviceName = Annotated[str, _device]
DryRun = Annotated[bool, _print("--dry-run", help="Only plan; write nothing.")]
Verbose = Annotated[
    bool, _print("--verbose", "-v", help="One line per tensor, and the slowest ones.")
]
Quiet = Annotated[bool, _print("--quiet", "-q", help="Print nothing but errors.")]
NoProgress = Annotated[bool, _print("--quiet", "-q", help="Print the table alone, no progress.")]


def _one_form(context: typer.Context, value: bool) -> bool:
    """Refuse two forms of one result; whichever option comes second sees the first."""
    if value and (context.params.get("json") or context.params.get("markdown")):
        raise typer.BadParameter("--json and --markdown: give one of them")
    return value


Json = Annotated[bool, _print("--json", callback=_one_form, help="Print one JSON document.")]
Markdown = Annotated[
    bool, _print("--markdown", callback=_one_form, help="Print tables in Markdown.")
]

# How the fields of these types are shown; the fields themselves are the library's.
_SHOWN: dict[type, dict[str, Any]] = {
    Options: {
        "type": _types(
            "--type",
            "-t",
            metavar="TYPE",
            help="A recipe (tq-q4, tq-q3, tq-q2, tq-q4-fast ...) or any GGUF type.",
        ),
        "rotate": _rotation(
            parser=str.lower,
            metavar="MODE",
            help="auto: whichever loses least; fused, values, scales, none, or tensor for study.",
        ),
        "block": _block,
        "seed": _seed_option,
        "pad": _types(
            parser=str.lower,
            metavar="auto|none",
            help="auto: add zero channels where few make types of low bits fit; none: never.",
        ),
        "balance": _rotation(help="Scale channels alike where a rotation is folded in."),
        "tensor_type": _types(
            parser=_tensor_type, metavar="REGEX=TYPE", help="Type of matching tensors; repeatable."
        ),
        "output_type": _types(metavar="TYPE", help="Type of the output head."),
        "token_embedding_type": _types(metavar="TYPE", help="Type of the token embedding."),
        "target_bpw": _types(
            min=1, max=16, metavar="X", help="Choose each tensor's type: X bits per weight."
        ),
        "target_size": _types(
            parser=byte_size,
            metavar="SIZE",
            help="Choose each tensor's type: a file of at most SIZE.",
        ),
        "strict": _types("--strict", help="A fallback to another type is an error."),
        "allow_requantize": _types(
            "--allow-requantize", help="Accept weights that are quantized already."
        ),
        "effort": _text(
            parser=str.lower,
            metavar="LEVEL",
            help="fast: no text. good, the default: a short pass over a built-in text, for "
            "rotation and importance. best: error feedback on a text.",
        ),
        "calibrate": _text(
            metavar="TEXT", help="--effort best on this text, or self: one that the model writes."
        ),
        "calibrate_tokens": _text(
            min=1, metavar="N", help="Tokens of the text to use; all, up to 65536, if unset."
        ),
        "imatrix": _text(metavar="FILE", help="llama.cpp's importance matrix: weigh errors by it."),
    },
    Split: {
        "max_size": _file(
            "--split-max-size",
            parser=byte_size,
            metavar="SIZE",
            help="Split the output into files of at most SIZE.",
        ),
        "max_tensors": _file(
            "--split-max-tensors",
            min=1,
            metavar="N",
            help="Split the output into files of at most N tensors.",
        ),
    },
    Machine: {
        "threads": _threads,
        "max_memory": _machine(
            parser=byte_size,
            metavar="SIZE",
            help="Memory to use, 4G say; if unset a quarter of the machine's, 4 GiB at most.",
        ),
        "cluster": _machine(
            metavar="ADDRESS", help="Work on a dask cluster: tcp://HOST:PORT, or local:N."
        ),
        "device": _device,
    },
}


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """Show a command's parameters of types such as `Options` as the options that are their fields.

    Of a dataclass that is not the library's the fields say themselves how they are shown. Typer
    reads the signature made here; the command gets the values.
    """
    signature = inspect.signature(command)
    groups = {n: p.annotation for n, p in signature.parameters.items() if is_group(p.annotation)}

    def shown(name: str, parameter: inspect.Parameter) -> Iterable[inspect.Parameter]:
        return _parameters(groups[name]) if name in groups else [parameter]

    @wraps(command)
    def run(**values: Any) -> None:
        given = {name: _value(type, values) for name, type in groups.items()}
        command(**values, **given)

    parameters = chain.from_iterable(starmap(shown, signature.parameters.items()))
    keywords = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    run.__signature__ = signature.replace(parameters=keywords)  # type: ignore[attr-defined]  # see above
    return run


def is_group(annotation: Any) -> bool:
    """Whether a parameter stands for several options."""
    return isinstance(annotation, type) and is_dataclass(annotation)


def _value(type: type, values: dict[str, Any]) -> Any:
    """Take the fields of a type out of an invocation's values; unset ones have their defaults."""
    given = {name: values.pop(name) for name in _annotations(type)}
    return type(**{name: x for name, x in given.items() if x is not None})


def _parameters(type: Any) -> list[inspect.Parameter]:
    """The fields of a type as parameters that Typer understands."""
    annotations = _annotations(type)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None if field.default == () else field.default,
            annotation=annotations[field.name],
        )
        for field in fields(type)
        if field.name in annotations
    ]


def _annotations(type: type) -> dict[str, Any]:
    """How Typer is to show the fields of a type."""
    if type not in _SHOWN:
        return get_type_hints(type, include_extras=True)
    types = get_type_hints(type) | {"tensor_type": list[str] | None}  # Typer knows no Sequence
    return {name: Annotated[types[name], option] for name, option in _SHOWN[type].items()}
