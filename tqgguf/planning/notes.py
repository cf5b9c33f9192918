"""What a plan says of itself: what was rotated and padded, and which options change nothing."""

from collections.abc import Iterator, Sequence

from tqgguf.models import Model
from tqgguf.planning.plan import Options, Plan, PlannedTensor
from tqgguf.rotation import ends
from tqgguf.rotation.padding import read_padding
from tqgguf.rotation.rotation import Rotation
from tqgguf.rotation.vectors import BALANCE, NORM_BALANCE


def idle_options(options: Options, rotation: Rotation, *, rounds: bool) -> Iterator[str]:
    """What to say of options that this rotation, or a plan that rounds nothing, has no use for."""
    given = {
        "--block": options.block is not None and rotation.mode not in ("fused", "tensor"),
        "--seed": options.seed and (rotation.mode != "fused" or rotation.kind == "regular"),
        "--no-balance": not options.balance and rotation.mode not in ("fused", "values", "scales"),
    }
    is_budget = options.target_bpw is not None or options.target_size is not None
    if is_budget and options.type != Options.type:
        yield f"--type {options.type} has no effect on matrices whose types a budget chooses"
    if not rounds and (options.calibrate is not None or options.effort == "best"):
        option = f"--calibrate {options.calibrate}" if options.calibrate else "--effort best"
        yield f"{option} has no effect: nothing is rounded"
    kind = f" in {rotation.kind} blocks" if rotation.mode == "fused" else ""
    for option in (name for name, is_idle in given.items() if is_idle):
        yield f"{option} has no effect on --rotate {rotation.mode}{kind}"


def _rotation_notes(rotation: Rotation, tensors: Sequence[PlannedTensor]) -> Iterator[str]:
    """What was rotated and how far it mixes."""
    within = f"within value heads in blocks of {rotation.value_block}"
    if rotation.mode == "tensor":
        yield "stock llama.cpp cannot run --rotate tensor: it would not rotate activations"
    elif rotation.mode == "scales":
        yield "nothing is rotated, channels are scaled"
    elif rotation.mode == "values":
        yield f"rotated {within} alone; the residual stream is untouched"
    elif rotation.mode == "fused":
        width = next(t.shape[-1] for t in tensors if t.name == ends.EMBEDDING)
        order, kind = rotation.block, rotation.kind
        count = f", {width // order} of them" if width > order else ""
        yield f"rotated along the residual stream of {width} in {kind} blocks of {order}{count}"
        yield f"rotated {within}" if rotation.value_block > 1 else "value heads are untouched"
    steps = " ".join(step.vector or "" for t in tensors for step in t.sides.columns)
    if BALANCE in steps:
        yield "the FFN's channels are balanced between ffn_up and ffn_down"
    if NORM_BALANCE in steps:
        yield "channels are balanced between the norms' gains and the matrices that read them"


def _padding_notes(model: Model) -> Iterator[str]:
    """Which widths were padded, and what that costs."""
    padding = read_padding(model)
    for what, name in (("the stream", ends.EMBEDDING), ("FFNs", "ffn_down")):
        found = (p for n, p in padding.pads.items() if n.endswith(name) or f".{name}" in n)
        widths = {(p.before[2], p.after[2]) for p in found} - {(0, 0)}
        for old, new in sorted(w for w in widths if w[0] < w[1]):
            yield f"rows of {what} padded from {old:,} to {new:,}, {new / old - 1:.1%} more"


def notes_of(model: Model, plan: Plan) -> tuple[str, ...]:
    """What was padded and rotated, and what that costs."""
    notes = list(_padding_notes(model))
    head = next((t for t in plan.tensors if t.name == ends.HEAD), None)
    if head and head.source != head.name:
        notes.append(
            f"untied: the fold needs an output head of its own, {head.n_bytes / 1e6:.1f} MB more"
        )
    notes.extend(_rotation_notes(plan.rotation, plan.tensors))
    return tuple(notes)
