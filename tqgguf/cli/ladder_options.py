"""What `tqgguf ladder` is asked: its options, in groups."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from tqgguf import llamacpp
from tqgguf.cli import measuring as m
from tqgguf.cli import options as o
from tqgguf.cli.plots import check_matplotlib
from tqgguf.llamacpp import Settings
from tqgguf.measure import eval as evaluate
from tqgguf.models.download import hub_name
from tqgguf.planning.plan import Options
from tqgguf.publishing.ladder import Rung, rungs
from tqgguf.publishing.upload import check_access

_TYPES = "tq-q2,tq-q3,tq-q4,q6_k,q8_0"
_ROUNDS = 3

Types = Annotated[
    str | None, typer.Option(metavar="TYPES", help=f"Recipes or types; {_TYPES} if unset.")
]
Sizes = Annotated[
    str | None, typer.Option(metavar="SIZES", help="Files of at most so much: 2G,3G,4G.")
]
Effort = Annotated[
    str | None, typer.Option(parser=str.lower, metavar="LEVEL", help="As of quantize.")
]
Calibrate = Annotated[
    Path | None, typer.Option(metavar="TEXT", help="Round with error feedback on this text.")
]
CalibrateTokens = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Tokens of it to use; all, up to 65536, if unset."),
]
Imatrix = Annotated[
    Path | None, typer.Option(metavar="FILE", help="llama.cpp's importance matrix, for a text.")
]
AllowRequantize = Annotated[
    bool, typer.Option("--allow-requantize", help="Accept weights that are quantized already.")
]
Rotate = Annotated[
    str, typer.Option(parser=str.lower, metavar="MODE", help="As of quantize; one for all files.")
]
Text = Annotated[
    Path | None, typer.Option("--eval", metavar="TEXT", help="Measure all files on this text.")
]
Context = Annotated[
    int | None, typer.Option("--ctx", min=8, help="Tokens a chunk; 512 or the model's.")
]
Chunks = Annotated[int | None, typer.Option(min=1, help="Read only so many chunks.")]
Bench = Annotated[bool, typer.Option("--bench", help="Measure the speed too.")]
BaseModel = Annotated[
    str | None, typer.Option(metavar="ORG/NAME", help="The original's name on the hub.")
]
QuantizedBy = Annotated[str, typer.Option(metavar="NAME", help="Who made the files.")]
Upload = Annotated[
    str | None, typer.Option(metavar="ORG/NAME", help="Send all to this repository of the hub.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Upload without asking.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite a card that was edited.")]


@dataclass(frozen=True)
class Wanted:
    """Which files, and how they are rounded."""

    types: Types = None
    sizes: Sizes = None
    effort: Effort = None
    calibrate: Calibrate = None
    calibrate_tokens: CalibrateTokens = None
    imatrix: Imatrix = None
    rotate: Rotate = "auto"
    allow_requantize: AllowRequantize = False

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
class Measured:
    """What is measured: on which text, cut how; speed in how many rounds."""

    text: Text = None
    context: Context = None
    chunks: Chunks = None
    bench: Bench = False
    rounds: m.Rounds = _ROUNDS

    def settings(self, original: Path, threads: int | None) -> Settings:
        """How llama-perplexity is to read the text."""
        context = self.context or evaluate.default_context(original)
        return Settings(context, self.chunks, threads)

    def check(self) -> None:
        """Find before any file is made what cannot be measured, and options without effect."""
        if self.text is None and (self.context is not None or self.chunks is not None):
            raise typer.BadParameter("--ctx and --chunks cut the text of --eval; add that")
        if not self.bench and self.rounds != _ROUNDS:
            raise typer.BadParameter("--rounds counts those of --bench; add that")
        if self.text is not None:
            evaluate.check_files([], self.text)
            llamacpp.find("llama-perplexity")
            check_matplotlib()
        if self.bench:
            llamacpp.find("llama-bench")


@dataclass(frozen=True)
class Page:
    """The card, and where all is sent."""

    base_model: BaseModel = None
    quantized_by: QuantizedBy = "tqgguf"
    upload: Upload = None
    yes: Yes = False
    force: Force = False

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
