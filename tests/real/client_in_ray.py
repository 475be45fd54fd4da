"""A driver of a Ray cluster that uses an app there: `python client_in_ray.py ENTITY VALUE`, with RAY_ADDRESS set.

It appends by the app's name, hands a reference to a Ray task that appends too, and prints what is in the ledger then.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import app_under_test
import ray

import atoll


@ray.remote(num_cpus=0)
def append_from_task(ledger: app_under_test.Ledger, value: str) -> tuple[int, int]:
    """The index, and the niceness that Ray gave the process."""
    import app_under_test  # noqa: F401 - the reference finds its kind among the classes of this process

    async def append() -> tuple[int, int]:
        async with atoll.connect("under-test"):
            return await ledger.append(value), os.nice(0)

    return asyncio.run(append())


async def main(entity: str, value: str) -> None:
    ray.init(
        address=os.environ["RAY_ADDRESS"],
        log_to_driver=False,
        logging_level="error",
        runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}},
    )
    async with atoll.connect("under-test") as cluster:
        ledger = cluster.entity(app_under_test.Ledger, entity)
        here = await ledger.append(value)
        task = append_from_task.remote(ledger, f"{value}, from a task")
        there, nice = await asyncio.to_thread(ray.get, task, timeout=60)
        found = {"nice": nice, "indexes": [here, there], "entries": await ledger.read()}
        sys.stdout.write(f"{json.dumps(found)}\n")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
