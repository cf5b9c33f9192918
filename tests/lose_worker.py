"""Quantize on a cluster of two processes and kill one of them, or the cluster, in mid-run.

`python -m tests.lose_worker MODEL OUT worker|all` prints a JSON object of what happened.
"""

import json
import logging
import os
import signal
import sys
from pathlib import Path

from distributed import Client, LocalCluster

from tqgguf.errors import ToolError
from tqgguf.machine.machine import Machine
from tqgguf.models import open_model
from tqgguf.pipeline import convert
from tqgguf.planning.plan import Options
from tqgguf.planning.planner import make_plan


def main() -> None:
    """Start the cluster, quantize, kill after the third tensor."""
    source, path, victim = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    model = open_model(source)
    plan = make_plan(model, Options(type="tq-q3", rotate="fused", effort="fast"))
    with LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=logging.CRITICAL
    ) as cluster:
        with Client(cluster) as client:
            first = client.run(os.getpid)
        reports, error = [], ""
        try:
            for report in convert(
                model, plan, path, machine=Machine(cluster=cluster.scheduler_address)
            ):
                reports.append(report)
                if len(reports) == 3 and victim == "worker":
                    os.kill(next(iter(first.values())), signal.SIGKILL)
                elif len(reports) == 3:
                    cluster.close()
        except ToolError as failure:
            error = str(failure)
        answer = {
            "error": error,
            "reports": len(reports),
            "killed": next(iter(first)),
            "workers": sorted({w for r in reports for w in r.workers}),
        }
    print(json.dumps(answer), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
