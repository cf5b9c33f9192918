"""A card that every machine has: arrays of array_api_strict, which knows the standard only.

As a card computes the elements of an array in any order, and several at once, what is changed in
place must not be read at other places by the same operation: here that fails.
"""

import array_api_strict as xp
import numpy as np

from tqgguf.machine.devices import Device

CardArray = type(xp.zeros(1))
CARD = Device("cuda", "a strict card", xp.asarray, exhausted=(MemoryError,))


def _require_apart(changed, read):
    """Fail if what is read lies elsewhere in what is changed."""
    read = getattr(read, "_array", None)
    if read is None or not np.shares_memory(changed, read):
        return
    places = [(a.ctypes.data, a.strides, a.shape) for a in (changed, read)]
    assert places[0] == places[1], "an operation in place reads what it has changed already"


def _guarded(name):
    operate = getattr(CardArray, name)

    def guarded(self, other):
        _require_apart(self._array, other)
        return operate(self, other)

    setattr(CardArray, name, guarded)


def _guarded_assignment():
    assign = CardArray.__setitem__

    def guarded(self, key, value):
        if not isinstance(key, CardArray):  # its elements are a copy
            _require_apart(self._array[key], value)
        assign(self, key, value)

    CardArray.__setitem__ = guarded


for each in ("add", "sub", "mul", "truediv"):
    _guarded(f"__i{each}__")
_guarded_assignment()
