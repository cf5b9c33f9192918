"""What of a machine, or of several, a piece of work may use."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """Who works, and within what; the same bytes come out whoever does, on a device of one kind.

    threads: workers, None for one per processor. max_memory: bytes that this process and its
    workers may use, which limits these (None: see `machine.memory.default_memory`). cluster: the
    scheduler of a dask.distributed cluster, tcp://HOST:PORT, or local:N processes, in place of
    threads. processes: take processes in place of threads where it pays (`machine.processes`);
    needs a main module that can be imported (`if __name__ == "__main__":`). device: what computes
    with the network and its moments: cpu, cuda, or auto (`machine.devices`).
    """

    threads: int | None = None
    max_memory: int | None = None
    cluster: str | None = None
    processes: bool = False
    device: str = "cpu"
