"""No file is longer than a reader holds in mind. A longer one is two files, or stands below with its reason."""

from __future__ import annotations

from pathlib import Path

from tests.architecture.source_tree import ROOT

MAX_LINES = 400
FOLDERS = ("mesh", "nodes", "scripts", "tests")
# Path from the root -> why it is one thing all the same.
LONGER: dict[str, str] = {}


def count_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def read_sizes() -> dict[str, int]:
    paths = (path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")))
    generated = ROOT / "mesh" / "v1"
    return {str(path.relative_to(ROOT)): count_lines(path) for path in paths if generated not in path.parents}


def test_no_file_is_too_long() -> None:
    too_long = {name: size for name, size in read_sizes().items() if size > MAX_LINES and name not in LONGER}
    assert not too_long, f"longer than {MAX_LINES} lines: {too_long}"


def test_exceptions_are_still_needed() -> None:
    sizes = read_sizes()
    stale = [name for name in LONGER if sizes.get(name, 0) <= MAX_LINES]
    assert not stale, f"LONGER lists files that are gone or short enough: {stale}"
