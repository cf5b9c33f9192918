"""Where arrays are computed with: in this process's memory by NumPy, or on a graphics card.

What runs there is the code that runs here (`tqgguf.kernels.arrays`); a device says how arrays get
there, how what is done again and again is done with few calls, and what running out of memory is.
"""

import ctypes
import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tqgguf.errors import DeviceError

DEVICES = ("cpu", "cuda", "auto")
_DRIVERS = ("libcuda.so.1", "libcuda.so", "nvcuda.dll")
_INSTALL = "pip install 'tqgguf[cuda]'"
Result = TypeVar("Result")

_GRAPHS = 32  # that are kept at most; a model has few shapes


def _here(array: NDArray[Any]) -> Any:
    return array


def _room(shape: tuple[int, ...]) -> Any:
    return np.empty(shape, np.float32)


def _directly(work: Callable[..., None], *arrays: Any) -> None:
    work(*arrays)


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Device:
    """A place for arrays.

    name: cpu or cuda. card: what it is called. put: a NumPy array's copy there. room: makes float32
    arrays of NumPy, to be written, that are copied fast. run: does
    work(*arrays), which changes arrays in place and is the same calls for the same shapes.
    exhausted: what is raised where memory ends. release: gives back what is free. most_memory: the
    bytes that were taken at the peak.
    """

    name: str
    card: str = ""
    put: Callable[[NDArray[Any]], Any] = field(default=_here, repr=False)
    room: Callable[[tuple[int, ...]], Any] = field(default=_room, repr=False)
    run: Callable[..., None] = field(default=_directly, repr=False)
    exhausted: tuple[type[BaseException], ...] = ()
    release: Callable[[], None] = field(default=_nothing, repr=False)
    most_memory: Callable[[], int] = field(default=int, repr=False)

    @property
    def is_cpu(self) -> bool:
        """Whether arrays are NumPy's."""
        return self.name == "cpu"


CPU = Device("cpu")


def on_device(
    device: Device, work: Callable[[Device], Result], what: str, say: Callable[[str], object]
) -> Result:
    """What work(device) returns, or work(CPU) where the device's memory ends, which is said."""
    try:
        return work(device)
    except device.exhausted:
        say(f"{device.card}: its memory does not do for {what}, which the CPU did")
    device.release()
    return work(CPU)


def find_device(name: str) -> Device:
    """The device that is asked for; auto is cuda where it works, else cpu.

    Raises DeviceError with one line where there is none of that name, or it does not work.
    """
    if name not in DEVICES:
        raise DeviceError(f"--device {name} is unknown; known: {', '.join(DEVICES)}")
    if name == "cpu":
        return CPU
    try:
        return _cuda()
    except DeviceError as error:
        if name == "auto":
            return CPU
        raise DeviceError(f"--device cuda: {error}; or use --device cpu") from None


@cache
def _cuda() -> Device:
    _check_driver()
    for make in (_torch, _cupy):
        try:
            return make()
        except ImportError:
            continue
    raise DeviceError(f"neither PyTorch nor CuPy is installed: {_INSTALL}")


def _check_driver() -> None:
    """Ask the driver itself, which costs nothing and starts nothing. Raises DeviceError."""
    driver = _driver()
    if driver is None:
        raise DeviceError(f"no NVIDIA driver is installed ({_DRIVERS[0]} is not found)")
    count, code = ctypes.c_int(0), driver.cuInit(0)
    if code == 0:
        code = driver.cuDeviceGetCount(ctypes.byref(count))
    if code not in (0, 100):  # 100: no device
        raise DeviceError(f"the NVIDIA driver does not start (CUDA error {code})")
    if not count.value:
        raise DeviceError("the NVIDIA driver finds no graphics card")


def _driver() -> Any:
    for name in _DRIVERS:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _torch() -> Device:
    """PyTorch's first card. Raises ImportError, DeviceError."""
    torch: Any = import_module("torch")
    try:
        torch.cuda.init()
    except (AssertionError, RuntimeError) as error:  # built without CUDA; a driver too old
        raise DeviceError(f"PyTorch cannot use it: {_first_sentence(error)}") from error
    _check_library("array_api_compat")
    torch.backends.cuda.matmul.allow_tf32 = False
    replayed = _Replayed(_TorchGraphs(torch))

    def release() -> None:
        replayed.forget()
        gc.collect()  # what a failed pass still holds
        torch.cuda.empty_cache()

    return Device(
        "cuda",
        torch.cuda.get_device_name(),
        lambda array: torch.asarray(np.require(array, requirements="W"), device="cuda"),
        lambda shape: torch.empty(shape, dtype=torch.float32, pin_memory=True).numpy(),
        replayed,
        (torch.cuda.OutOfMemoryError,),
        release,
        torch.cuda.max_memory_reserved,
    )


def _cupy() -> Device:
    """CuPy's first card. Raises ImportError, DeviceError."""
    cupy: Any = import_module("cupy")
    try:
        name = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
        cupy.zeros(1) + 1
    except Exception as error:
        raise DeviceError(f"CuPy cannot use it: {_first_sentence(error)}") from error
    _check_library("array_api_compat")
    pool = cupy.get_default_memory_pool()
    import_module("cupyx").seterr(linalg="raise")
    return Device(
        "cuda",
        name,
        cupy.asarray,
        exhausted=(cupy.cuda.memory.OutOfMemoryError,),
        release=pool.free_all_blocks,
        most_memory=pool.total_bytes,
    )


def _check_library(name: str) -> None:
    try:
        import_module(name)
    except ImportError as error:
        raise DeviceError(f"array-api-compat is missing: {_INSTALL}") from error


def _first_sentence(error: BaseException) -> str:
    """What went wrong, without the addresses of pages that PyTorch adds."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return line.split(". ")[0].rstrip(".")


class _Replayed:
    """Does work by replaying the calls that it made the first time, recorded by a library.

    A recorded call works on arrays of its own: those given are copied there and back. Work is told
    apart by its value and the shapes of its arrays.
    """

    def __init__(self, graphs: Any) -> None:
        self._graphs = graphs
        self._known: dict[Any, Any] = {}

    def __call__(self, work: Callable[..., None], *arrays: Any) -> None:
        """Do work(*arrays)."""
        key = work, tuple(tuple(a.shape) for a in arrays)
        if key not in self._known:
            if len(self._known) >= _GRAPHS:
                self._known.pop(next(iter(self._known)))
            self._known[key] = self._graphs.record(work, arrays)
        own, replay = self._known[key]
        for mine, given in zip(own, arrays, strict=True):
            mine[...] = given
        replay()
        for mine, given in zip(own, arrays, strict=True):
            given[...] = mine

    def forget(self) -> None:
        """Give up what was recorded, and its memory."""
        self._known.clear()


class _TorchGraphs:
    """Records calls as CUDA graphs, which share the memory of what they compute in between."""

    def __init__(self, torch: Any) -> None:
        self._torch, self._pool = torch, torch.cuda.graph_pool_handle()

    def record(self, work: Callable[..., None], arrays: Any) -> tuple[list[Any], Any]:
        """The arrays that the graph works on, and what replays it."""
        torch = self._torch
        own = [a.clone(memory_format=torch.contiguous_format) for a in arrays]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # once without: libraries set themselves up
            work(*own)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        own_thread = {"capture_error_mode": "thread_local"}  # others may reserve memory meanwhile
        with torch.cuda.graph(graph, pool=self._pool, stream=stream, **own_thread):
            work(*own)
        return own, graph.replay
