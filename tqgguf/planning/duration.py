"""How long writing a plan takes here: each of its types is tried on a few rows."""

import time
from collections.abc import Mapping
from functools import cache

import numpy as np

from tqgguf.formats import is_float, quantize
from tqgguf.kernels.dtypes import F32
from tqgguf.machine.machine import Machine
from tqgguf.machine.threads import default_threads, single_threaded_blas
from tqgguf.planning.plan import Plan

_ROWS, _WIDTH = 16, 2048  # of the sample: 32,768 weights
_TRIES = 3
_REST = 12e-9  # seconds a weight: reading, folding, the control, checksums (docs/LOG.md)


def writing_seconds(plan: Plan, machine: Machine = Machine()) -> float:
    """About how long reading, folding and encoding all tensors takes, without calibration."""
    workers = machine.threads or default_threads()
    rounded: Mapping[str, int] = _weights(plan)
    weighed = bool(plan.measured_on)
    encoding = sum(_seconds_per_weight(type, weighed) * n for type, n in rounded.items())
    return (encoding + _REST * plan.source_weights) / workers


def _weights(plan: Plan) -> dict[str, int]:
    """How many weights become each type that rounds."""
    found: dict[str, int] = {}
    for t in plan.tensors:
        if len(t.shape) > 1 and not is_float(t.type) and t.type != t.source_type:
            found[t.type] = found.get(t.type, 0) + t.size
    return found


@cache
def _seconds_per_weight(type: str, weighed: bool) -> float:
    """One thread's, at the best: the first time a type loads what it needs, others disturb."""
    rows: F32 = np.random.default_rng(0).standard_normal((_ROWS, _WIDTH), np.float32)
    importance: F32 | None = np.ones(_WIDTH, np.float32) if weighed else None
    taken = []
    with single_threaded_blas():
        for _ in range(_TRIES):
            began = time.thread_time()
            quantize(rows, type, importance, threads=1)
            taken.append(time.thread_time() - began)
    return min(taken) / rows.size
