"""`atoll status`, asked again and again by one process: connecting to Ray takes a second or two, looking milliseconds.

`python looker.py`, with RAY_ADDRESS set: an app's name on a line of stdin, what `atoll status --json` would print of it on a
line of stdout; `{"error": ...}` where that would be refused.
"""

from __future__ import annotations

import json
import os
import sys

from atoll.actors.errors import AtollError
from atoll.cluster.ray_status import status
from atoll.cluster.starting import in_ray


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what Ray itself prints goes elsewhere
    with in_ray(None):
        for line in sys.stdin:
            try:
                found = status(line.strip())
            except AtollError as error:
                found = {"error": str(error)}
            answers.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
