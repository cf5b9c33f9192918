"""Options that several commands share, and how they become library values."""

import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer

from tqgguf.errors import PlanError
from tqgguf.output.layout import Split
from tqgguf.planning.choices import Request
from tqgguf.planning.plan import Options

_SIZE = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<unit>|[KMGT]I?)B?", re.IGNORECASE)
_UNITS = {"": 1, **{u: 1000**i for i, u in enumerate("KMGT", 1)}}
_UNITS |= {f"{u}I": 1024**i for i, u in enumerate("KMGT", 1)}

Model = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL", help="A .gguf file (or its first shard), a folder, or .safetensors."
    ),
]
VocabFrom = Annotated[
    Path | None,
    typer.Option(metavar="GGUF", help="Take the tokenizer from this file, not from the folder."),
]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="The file to write; beside MODEL if unset.")
]
Type = Annotated[
    str,
    typer.Option(
        "--type", "-t", help="A recipe (tq-q4, tq-q3, tq-q2, tq-q4-fast ...) or any GGUF type."
    ),
]
Rotate = Annotated[str, typer.Option(help="fused, auto, tensor, none or values.")]
Block = Annotated[
    str, typer.Option(help="Hadamard order: a power of two that divides the width, or auto.")
]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of the rotation's signs.")]
Balance = Annotated[bool, typer.Option(help="Scale channels alike where a rotation is folded in.")]
TensorType = Annotated[
    list[str] | None,
    typer.Option(metavar="REGEX=TYPE", help="Type of matching tensors; may be repeated."),
]
OutputType = Annotated[str | None, typer.Option(help="Type of the output head.")]
EmbeddingType = Annotated[str | None, typer.Option(help="Type of the token embedding.")]
Calibrate = Annotated[
    Path | None,
    typer.Option(metavar="TEXT", help="Round with error feedback on this text: half the loss."),
]
TargetBpw = Annotated[
    float | None,
    typer.Option(min=1, max=16, metavar="X", help="Choose each tensor's type: X bits per weight."),
]
TargetSize = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Choose each tensor's type: a file of at most SIZE."),
]
Imatrix = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="llama.cpp's importance matrix: weigh errors by it."),
]
SaveImatrix = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Write the importance matrix of the text of --calibrate."),
]
CalibrateTokens = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Tokens of the text to use, 65536 if unset.")
]
Strict = Annotated[bool, typer.Option("--strict", help="A fallback to another type is an error.")]
Requantize = Annotated[
    bool, typer.Option("--allow-requantize", help="Accept weights that are quantized already.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="Worker threads; one per core if unset.")]
MaxMemory = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Memory to use, 4G say; a quarter of the machine's, <= 4G."),
]
SplitMaxSize = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Split the output into files of at most SIZE.")
]
SplitMaxTensors = Annotated[
    int | None, typer.Option(min=1, help="Split the output into files of at most N tensors.")
]
Cluster = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="Work on a dask cluster: tcp://HOST:PORT, or local:N."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with what an interrupted run left.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="One line per tensor, and the slowest ones.")
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite the output.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]


@dataclass(frozen=True)
class Planning:
    """The options that lead to a plan, which `quantize` and `plan` share."""

    type: Type = "tq-q4"
    rotate: Rotate = "fused"
    block: Block = "auto"
    seed: Seed = 0
    balance: Balance = True
    tensor_type: TensorType = None
    output_type: OutputType = None
    token_embedding_type: EmbeddingType = None
    calibrate: Calibrate = None
    calibrate_tokens: CalibrateTokens = None
    imatrix: Imatrix = None
    target_bpw: TargetBpw = None
    target_size: TargetSize = None
    strict: Strict = False
    allow_requantize: Requantize = False
    vocab_from: VocabFrom = None

    def options(self) -> Options:
        """What a plan is made of."""
        return Options(
            type=self.type,
            rotate=self.rotate.lower(),
            block=block_order(self.block),
            seed=self.seed,
            balance=self.balance,
            tensor_types=[_tensor_type(text) for text in self.tensor_type or []],
            output_type=self.output_type,
            token_embedding_type=self.token_embedding_type,
            strict=self.strict,
            allow_requantize=self.allow_requantize,
        )

    def request(self, threads: int | None = None) -> Request:
        """What has to be found out before there is one."""
        return Request(
            target_bpw=self.target_bpw,
            target_size=byte_size(self.target_size, "--target-size"),
            calibrate=self.calibrate,
            calibrate_tokens=self.calibrate_tokens,
            imatrix=self.imatrix,
            threads=threads,
        )


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """Show a parameter that is a dataclass as the options that are its fields.

    Typer reads the signature made here; the command gets the dataclass.
    """
    signature = inspect.signature(command)
    groups: dict[str, Any] = {
        p.name: p.annotation for p in signature.parameters.values() if is_dataclass(p.annotation)
    }

    def options(parameter: inspect.Parameter) -> Iterable[inspect.Parameter]:
        if parameter.name not in groups:
            return [parameter]
        return inspect.signature(groups[parameter.name]).parameters.values()

    @wraps(command)
    def run(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{f.name: values.pop(f.name) for f in fields(group)})
        command(**values)

    spreading = chain.from_iterable(map(options, signature.parameters.values()))
    shown = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in spreading]
    run.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]  # see above
    return run


def block_order(text: str) -> int | None:
    """A Hadamard order, or None for auto."""
    if text.lower() == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(f"{text!r} is neither a positive number nor auto")
    return int(text)


def split_options(max_size: str | None, max_tensors: int | None) -> Split:
    """Turn the options of split output into the library's."""
    return Split(byte_size(max_size, "--split-max-size"), max_tensors)


def byte_size(text: str | None, option: str) -> int | None:
    """Bytes of a size such as 4G, 3.9GB, 500M (powers of 1000, as llama.cpp's tools) or 4GiB."""
    if text is None:
        return None
    match = _SIZE.fullmatch(text.strip())
    size = float(match["number"]) * _UNITS[match["unit"].upper()] if match else 0
    if not match or not 1 <= size < 2**63:
        raise typer.BadParameter(f"{option} {text!r} is no size such as 4G, 500M or 4GiB")
    return int(size)


def _tensor_type(text: str) -> tuple[str, str]:
    pattern, equals, type = text.rpartition("=")
    if not equals or not pattern:
        raise typer.BadParameter(f"{text!r} is not REGEX=TYPE")
    try:
        re.compile(pattern)
    except re.error as error:
        raise PlanError(f"--tensor-type {pattern!r} is no regular expression: {error}") from None
    return pattern, type
