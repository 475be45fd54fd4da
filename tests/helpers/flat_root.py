"""A pytest plugin: the root of this repository is the package, and pytest would import it once more under the name of its
folder, which may be none (`atoll-2`)."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_collect_directory(path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    return pytest.Dir.from_parent(parent, path=path) if path == parent.config.rootpath else None
