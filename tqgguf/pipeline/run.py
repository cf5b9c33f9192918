"""What a run is: its files but for the tensors' bytes, and what another must share to continue."""

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import numpy as np

from tqgguf.calibration.calibrated import Calibrated
from tqgguf.kernels.dtypes import F32, U8
from tqgguf.machine.content import digest
from tqgguf.models import Model, Tensor, model_files, scale_name
from tqgguf.output.files import Output
from tqgguf.output.layout import Layout, Split, TensorInfo, lay_out, lay_out_shards
from tqgguf.output.scales import scales_of
from tqgguf.pipeline.encoder import Encoder
from tqgguf.planning.header import output_metadata
from tqgguf.planning.plan import Plan
from tqgguf.rotation.folded import fold
from tqgguf.rotation.rotation import Rotation
from tqgguf.version import __version__


def infos(plan: Plan) -> list[TensorInfo]:
    """What the header says of every tensor."""
    return [TensorInfo(t.name, t.shape, t.type) for t in plan.stored]


@dataclass(frozen=True)
class Run:
    """A model, what is to become of it, and what was found out about it; see `convert`."""

    model: Model
    plan: Plan
    rotation: Rotation  # the plan's, with its vectors
    calibrated: Calibrated
    importance: Mapping[str, F32 | None]

    @classmethod
    def of(
        cls,
        model: Model,
        plan: Plan,
        calibrated: Calibrated,
        importance: Callable[[str], F32 | None],
        *,
        threads: int | None,
    ) -> "Run":
        """Read the vectors of the rotation and the importance of every tensor: see `convert`."""
        rotation = plan.rotation.with_vectors_of(model, threads=threads)
        importances = {t.name: importance(t.name) for t in plan.tensors}
        return cls(model, plan, rotation, calibrated, importances)

    @cached_property
    def weighed_by(self) -> str:
        """What the importance matrix says, wherever it lies; "" without one."""
        given = {name: x for name, x in self.importance.items() if x is not None}
        parts = (part for name, x in given.items() for part in (name.encode(), x.tobytes()))
        return digest(parts) if given else ""

    def layouts(self, split: Split) -> list[Layout]:
        """Every byte but the tensors'."""
        metadata = output_metadata(
            self.model, self.plan, self.rotation, self.calibrated.key, self.weighed_by
        )
        tensors = infos(self.plan)
        if not split:
            return [lay_out(metadata, tensors)]
        content = (_beginning(tensor).tobytes() for tensor in self.model.tensors.values())
        identity = digest([lay_out(metadata, tensors).header, *content])
        return lay_out_shards(metadata, tensors, split, run=identity)

    def identity(self, layouts: Sequence[Layout]) -> dict[str, str]:
        """What must be the same for a run to continue another: a text for each aspect."""
        plan = self.plan
        return {
            "tqgguf": f"version {__version__}",
            "the machine": f"{platform.machine()} with NumPy {np.__version__}",
            **{f"input {p.name}": state_of(p) for p in model_files(self.model.path)},
            "--type": plan.recipe.name,
            "--rotate": plan.rotation.mode,
            "--seed": str(plan.rotation.seed),
            "the number of files": str(len(layouts)),
            "the content of --calibrate": self.calibrated.key or "none",
            "the content of --imatrix": self.weighed_by or "none",
            "the plan": digest([repr((plan.tensors, plan.quick)).encode()]),
            "the metadata": digest(layout.header for layout in layouts),
        }

    def encoders(self, output: Output) -> "dict[str, Encoder]":
        """An encoder for each tensor, by its name in the output."""
        scales = self.scales()
        return {
            p.name: Encoder(
                self.model.tensors[p.source],
                p,
                self.rotation,
                output.slot(p.name),
                self.calibrated.rows.get(p.name),
                self.importance.get(p.name),
                scales.get(p.name),
                self.plan.quick,
            )
            for p in self.plan.stored
        }

    def scales(self) -> dict[str, F32]:
        """The scales of the matrices that have some, by their own names and the matrices'."""
        scaled = [p for p in self.plan.tensors if p.is_scaled]
        folded = fold(self.model, self.rotation).tensors if scaled else {}
        found: dict[str, F32] = {}
        for p in scaled:
            kept = self.model.tensors[p.source].scales if p.is_copy else None
            values = scales_of(folded[p.name]) if kept is None else kept
            found |= {p.name: values, scale_name(p.name): values}
        return found


def _beginning(tensor: Tensor) -> U8 | F32:
    """The first row: fine-tuned models of one shape differ in it somewhere."""
    return tensor.stored(0, 1) if tensor.raw else tensor.rows(0, 1)


def state_of(path: Path) -> str:
    """Size and time of a file: what changes with its content, found without reading it."""
    stat = path.stat()
    seconds, nanoseconds = divmod(stat.st_mtime_ns, 10**9)
    modified = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
    return f"{stat.st_size:,} bytes of {modified}.{nanoseconds:09d}"
