"""What `tqgguf ladder` is asked: its options, in groups."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from tqgguf import llamacpp
from tqgguf.cli import measuring as m
from tqgguf.cli import options as o
from tqgguf.cli.plots import check_matplotlib
from tqgguf.measure import eval as evaluate
from tqgguf.models.download import hub_name
from tqgguf.planning.plan import Options
from tqgguf.publishing.ladder import Rung, rungs
from tqgguf.publishing.upload import check_access

_TYPES = "tq-q2,tq-q3,tq-q4,q6_k,q8_0"


@dataclass(frozen=True)
class Wanted:
    """Which files, and how they are rounded."""

    types: Annotated[
        str | None,
        typer.Option(
            metavar="TYPES", help=f"Recipes or types; if unset {_TYPES.replace(',', ', ')}."
        ),
    ] = None
    sizes: Annotated[
        str | None, typer.Option(metavar="SIZES", help="Files of at most so much: 2G,3G,4G.")
    ] = None
    effort: Annotated[
        str | None, typer.Option(parser=str.lower, metavar="LEVEL", help="As of quantize.")
    ] = None
    calibrate: Annotated[
        Path | None, typer.Option(metavar="TEXT", help="Round with error feedback on this text.")
    ] = None
    calibrate_tokens: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Tokens of it to use; all, up to 65536, if unset."),
    ] = None
    imatrix: Annotated[
        Path | None, typer.Option(metavar="FILE", help="llama.cpp's importance matrix, for a text.")
    ] = None
    rotate: Annotated[
        str,
        typer.Option(parser=str.lower, metavar="MODE", help="As of quantize; one for all files."),
    ] = "auto"
    allow_requantize: Annotated[
        bool, typer.Option("--allow-requantize", help="Accept weights that are quantized already.")
    ] = False

    @property
    def shared(self) -> Options:
        """What a plan of any of them is asked."""
        return Options(
            effort=self.effort,
            calibrate=self.calibrate,
            calibrate_tokens=self.calibrate_tokens,
            imatrix=self.imatrix,
            rotate=self.rotate,
            allow_requantize=self.allow_requantize,
        )

    def rungs(self) -> list[Rung]:
        """The files; sizes are named in the user's words. Raises PlanError."""
        types = _TYPES if self.types is None and self.sizes is None else self.types
        sizes = [(text.upper(), o.byte_size(text)) for text in m.names(self.sizes or "")]
        return rungs(m.names(types or ""), sizes, self.shared)


@dataclass(frozen=True)
class Measured(m.Measuring):
    """What is measured: on which text, cut how; speed in how many rounds."""

    text: Annotated[
        Path | None, typer.Option("--eval", metavar="TEXT", help="Measure all files on this text.")
    ] = None
    context: m.ContextSize = None
    chunks: m.Chunks = None
    bench: m.AlsoBench = False
    rounds: m.Rounds = m.ROUNDS

    def check(self) -> None:
        """Find before any file is made what cannot be measured, and options without effect."""
        if self.text is None and (self.context is not None or self.chunks is not None):
            raise typer.BadParameter("--ctx and --chunks cut the text of --eval; add that")
        self.check_rounds()
        if self.text is not None:
            evaluate.check_files([], self.text)
            llamacpp.find("llama-perplexity")
            check_matplotlib()
        if self.bench:
            llamacpp.find("llama-bench")


@dataclass(frozen=True)
class Page:
    """The card, and where all is sent."""

    base_model: Annotated[
        str | None, typer.Option(metavar="ORG/NAME", help="The original's name on the hub.")
    ] = None
    quantized_by: Annotated[str, typer.Option(metavar="NAME", help="Who made the files.")] = (
        "tqgguf"
    )
    upload: Annotated[
        str | None, typer.Option(metavar="ORG/NAME", help="Send all to this repository of the hub.")
    ] = None
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Upload without asking.")] = False
    force: Annotated[bool, typer.Option("--force", help="Overwrite a card that was edited.")] = (
        False
    )

    def check(self, *, asks: bool) -> None:
        """Refuse before the work what could not be sent after it; asks: can anybody be asked?"""
        repo = self.upload
        if repo is None:
            if self.yes:
                raise typer.BadParameter("--yes answers --upload; add that")
            return
        name = hub_name(repo)
        if name is None or name.repo != repo:
            raise typer.BadParameter(f"--upload {repo}: expected ORG/NAME, a repository of the hub")
        if not (self.yes or asks):
            raise typer.BadParameter(
                "--upload asks before it sends, and nobody is there; add --yes"
            )
        check_access(repo)
