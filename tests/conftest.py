"""What all tests share: where their helpers lie, the conformance table, and real Ray nodes for those marked `real`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from three_nodes import RayNodes

_ROOT = Path(__file__).resolve().parents[1]
# Tests are no package (pytest imports them by path), so what they share is found by folder.
for _folder in ("tests/helpers", "deploy", "examples", "bench"):
    sys.path.insert(0, str(_ROOT / _folder))

pytest_plugins = ["conformance", "pytester"]


@pytest.fixture(scope="module")
def ray_nodes() -> Iterator[RayNodes]:
    """Three fresh Ray nodes for the tests of one module, which must be marked `real`."""
    from three_nodes import RayNodes

    with RayNodes.start(3) as nodes:
        yield nodes
