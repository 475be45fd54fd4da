"""One simulation: a loop on virtual time, a network, and processes, from one seed.

def test_something(seed):
    with Simulation(seed) as simulation:
        host = simulation.process("host")
        host.run(serve(simulation.network, simulation.world("host")))
        simulation.run(scenario())          # the test's own task, in no process; raises what went wrong anywhere
"""

from __future__ import annotations

from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

from .loop import Process, VirtualTimeLoop
from .network import SimNetwork
from .world import SimWorld

T = TypeVar("T")


class Simulation:
    def __init__(
        self, seed: int | str, *, limit_s: float = 3600.0, delay_s: tuple[float, float] = (0.0001, 0.001)
    ) -> None:
        self.seed = seed
        self.loop = VirtualTimeLoop(seed, limit_s=limit_s)
        self.network = SimNetwork(self.loop, delay_s=delay_s)

    def process(self, name: str) -> Process:
        return self.loop.process(name)

    def world(self, name: str) -> SimWorld:
        return SimWorld(self.loop, name)

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Run `main` to its end and return its result. Raises what it raises; else, as a group, what was raised in the
        background and caught by nobody."""
        try:
            result = self.loop.run_until_complete(main)
        except BaseException as error:
            error.add_note(f"simulation seed: {self.seed!r}, trace {self.network.trace()[:16]}")
            for failure in self.loop.failures:
                error.add_note(f"in the background: {failure!r}")
            raise
        if self.loop.failures:
            raise BaseExceptionGroup(f"in the background (seed {self.seed!r})", self.loop.failures)
        return result

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.loop.dispose()
