"""A real Ray cluster of three nodes, and the app of these tests on it, for the tests of one module."""

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


@pytest.fixture(scope="module")
def cli(ray_nodes: RayNodes, tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    from command_line import CommandLine

    return CommandLine(tmp_path_factory.mktemp("real"), ray_nodes.address)


@pytest.fixture(scope="module")
def running(ray_nodes: RayNodes, cli: CommandLine) -> Iterator[RunningApp]:
    """Started once for the tests of a module; each of them leaves it whole again."""
    from running_app import RunningApp

    cli.start()
    yield RunningApp(ray_nodes, cli)
    cli.run("stop", "under-test")
