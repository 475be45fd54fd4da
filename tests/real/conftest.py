"""A real Ray cluster of three nodes for most of these tests, and the app on it, for the tests of one module."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # app_under_test and what these tests share

if TYPE_CHECKING:
    from command_line import CommandLine
    from running_app import RunningApp
    from three_nodes import RayNodes


class SharedNodes:
    """Three nodes, which take as long to start as many a test."""

    def __init__(self) -> None:
        self._nodes: RayNodes | None = None

    def get(self) -> RayNodes:
        from three_nodes import RayNodes

        if self._nodes is None:
            self._nodes = RayNodes.start(3)
        return self._nodes

    def stop(self) -> None:
        if self._nodes is not None:
            self._nodes.stop()
        self._nodes = None


_SHARED = SharedNodes()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    """Other tests are not to run beside nodes that nobody needs any more."""
    if nextitem is None or not nextitem.path.is_relative_to(Path(__file__).parent):
        _SHARED.stop()


@pytest.fixture(scope="session")
def shared_nodes() -> Iterator[SharedNodes]:
    yield _SHARED
    _SHARED.stop()


@pytest.fixture(scope="module")
def ray_nodes(shared_nodes: SharedNodes) -> RayNodes:
    """Each module leaves three nodes on which nothing runs, or starts its own."""
    return shared_nodes.get()


@pytest.fixture(scope="module")
def cli(ray_nodes: RayNodes, tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    from command_line import CommandLine

    return CommandLine(tmp_path_factory.mktemp("real"), ray_nodes.address)


@pytest.fixture(scope="module")
def running(ray_nodes: RayNodes, cli: CommandLine) -> Iterator[RunningApp]:
    """Started once for the tests of a module; each of them leaves it whole again."""
    from running_app import RunningApp

    cli.start()
    with RunningApp(ray_nodes, cli) as running:
        yield running
    cli.run("stop", "under-test")
