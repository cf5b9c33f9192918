"""Time that means the same on a fast, a slow and a busy machine."""

import time
from collections.abc import Callable


def effort(work: Callable[[], object]) -> float:
    """The processor time that work takes, in units of a million steps of a Python loop.

    The unit is measured before and after, the longer counts; it was 0.06 s where limits were set.
    """
    units, spent = [_spent(_loop)], _spent(work)
    units.append(_spent(_loop))
    return spent / max(units)


def _loop() -> None:
    sum(i * i for i in range(1_000_000))


def _spent(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began
