"""Commands in a process of its own, whose environment names another hub.

huggingface_hub reads it once, on import. `python -m tests.hub_client JSON`: a list of lists of
arguments; prints a list of exit status, stdout and stderr.
"""

import json
import sys

from tests.cli.story import run

if __name__ == "__main__":
    results = [run(*args) for args in json.loads(sys.argv[1])]
    broken = [r.exception for r in results if not isinstance(r.exception, SystemExit | None)]
    if broken:
        raise broken[0]
    sys.stdout.write(json.dumps([(r.exit_code, r.stdout, r.stderr) for r in results]))
