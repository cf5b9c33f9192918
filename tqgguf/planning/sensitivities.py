"""How much an error in each matrix matters, measured as thoroughly as the effort allows.

best: in passes of its own for each matrix, or for roles and bands of layers. good: roles are known
(tqgguf.planning.allocation), and only what they are known for, one family of models, is corrected:
how much the embedding, the head and all layers together matter beside each other.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from tqgguf.calibration.kept import Arrays, keep
from tqgguf.calibration.resources import threads_of_passes
from tqgguf.calibration.sensitivity import TOKENS, TOKENS_TOGETHER, measure_sensitivity
from tqgguf.calibration.tokens import short_sequences
from tqgguf.errors import PlanError
from tqgguf.machine.cache import user_cache
from tqgguf.machine.devices import Device, find_device, on_device
from tqgguf.machine.machine import Machine
from tqgguf.models import Model
from tqgguf.network.forward import Tokens
from tqgguf.planning.allocation import known_sensitivity
from tqgguf.planning.budget import count_layers
from tqgguf.planning.inputs import Inputs
from tqgguf.planning.matrices import is_matrix
from tqgguf.planning.plan import Plan
from tqgguf.rotation.ends import HEAD
from tqgguf.rotation.energies import Energies
from tqgguf.rotation.folded import fold

Found = tuple[Mapping[str, float] | None, list[str]]


def find_sensitivity(
    model: Model, plan: Plan, inputs: Inputs, energies: Energies, machine: Machine
) -> Found:
    """The divergence per relative error of every matrix's outputs, and what to say of it.

    None where what is known of roles has to do: no text is at hand, or the head is the embedding,
    where measuring takes more time than it is worth (docs/decisions/0047). energies: of the inputs,
    as stored.
    Raises PlanError where `--max-memory` is too little for a thorough one.
    """
    measured = _Measured(model, plan, energies, machine)
    if inputs.tokens is not None:
        return measured.on(inputs.tokens, "of outputs", known=None), measured.notes
    if inputs.text is None or HEAD not in measured.names:
        return None, []
    n_layer = count_layers(model)
    known = {n: known_sensitivity(n, n_layer, of_outputs=True) for n in measured.names}
    tokens = short_sequences(model, inputs.text)
    try:
        found = measured.on(tokens, "of ends and layers", known=known)
    except PlanError:
        return None, ["--max-memory is too little to measure sensitivities; roles decide"]
    note = f"sensitivity of embedding, head and layers measured on {TOKENS_TOGETHER} tokens"
    return found, [note, *measured.notes]


@dataclass(frozen=True)
class _Measured:
    """Sensitivities that are measured, or were; notes: of the device."""

    model: Model
    plan: Plan
    energies: Energies
    machine: Machine
    notes: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """The matrices."""
        return [t.name for t in self.plan.tensors if is_matrix(self.model.tensors[t.source])]

    def on(
        self, tokens: Tokens, what: str, *, known: Mapping[str, float] | None
    ) -> dict[str, float]:
        """Those on some tokens, (n_seq, n_tokens) int32, kept as `what`; known: if they are."""
        from tqgguf.calibration.cached import statistics_key  # slow to import, seldom needed

        device = find_device(self.machine.device)
        threads = threads_of_passes(self.model, self.machine, TOKENS, layers=3)  # one is changed
        names, rotation = self.names, self.plan.rotation.with_vectors_of(self.model)
        folded = fold(self.model, rotation)

        def work(where: Device) -> dict[str, float]:
            return measure_sensitivity(
                folded,
                names,
                tokens,
                known=known,
                energies=self.energies,
                threads=threads,
                device=where,
            )

        def found() -> Arrays:
            by_name = on_device(device, work, "the sensitivities", self.notes.append)
            return [np.array([by_name[name] for name in names])]

        said = " ".join(["sensitivity", what, *([] if device.is_cpu else [device.card])])
        key = statistics_key(self.model, rotation, tokens)
        (values,) = keep(user_cache() / "inputs", key, said, found)
        return dict(zip(names, values.tolist(), strict=True))
