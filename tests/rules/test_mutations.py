"""Leaves out one rule of the protocol at a time, and sees that a test fails. See mutations.py."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conformance_rows import ROWS

sys.path.insert(0, str(Path(__file__).parent))

from mutations import MUTATIONS, Mutation

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("actors", "persistence", "sharding", "cluster")
DUE = [f"PR{number:02}" for number in range(1, 29)]


# ---- the list itself, in every run


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_the_text_that_a_mutation_changes_stands_once_in_its_file(mutation: Mutation) -> None:
    """Code moves on: a mutation that no longer bites must be rewritten with it."""
    assert (ROOT / mutation.file).read_text().count(mutation.old) == 1
    file, _, test = mutation.tests.partition("::")
    assert re.search(rf"def {re.escape(test.partition('[')[0])}\(", (ROOT / file).read_text())


def test_every_rule_that_is_due_is_left_out_at_least_once() -> None:
    """Each rule of the protocol has a test that fails without it."""
    assert set(DUE) <= {mutation.rule for mutation in MUTATIONS}
    assert {mutation.rule for mutation in MUTATIONS} <= set(ROWS)
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS)


# ---- the experiment


def package(folder: Path) -> Path:
    """A copy of the package, to be imported as `atoll` from `folder`."""
    copy = folder / "atoll"
    for name in FOLDERS:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "__init__.py", copy)
    return copy


def run(folder: Path, *tests: str) -> subprocess.CompletedProcess[str]:
    """Run tests against the copy in `folder`, which stands before the installed package on the path."""
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    where = subprocess.run(
        [sys.executable, "-c", "import atoll; print(atoll.__file__)"],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.startswith(str(folder)), f"the copy is not what is imported: {where.stdout}"
    options = ["-q", "-p", "no:cacheprovider", "--no-header", "--timeout=60", "--rootdir", str(ROOT)]
    command = [sys.executable, "-m", "pytest", *options, *tests]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_without_a_mutation_all_of_them_pass(tmp_path: Path) -> None:
    """Else the others would prove nothing."""
    package(tmp_path)
    result = run(tmp_path, *sorted({mutation.tests for mutation in MUTATIONS}))
    assert result.returncode == 0, result.stdout[-3000:]


@pytest.mark.soak
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_rule_that_is_left_out_is_noticed(mutation: Mutation, tmp_path: Path) -> None:
    """The test that is named for it fails, and not because it could not be collected."""
    file = package(tmp_path) / mutation.file
    text = file.read_text()
    assert text.count(mutation.old) == 1
    file.write_text(text.replace(mutation.old, mutation.new))
    compile(file.read_text(), str(file), "exec")
    result = run(tmp_path, mutation.tests)
    assert result.returncode == 1, f"survived, or could not run: {result.returncode}\n{result.stdout[-3000:]}"
