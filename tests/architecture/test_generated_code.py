"""Committed `mesh/v1` and the gateways' descriptors are what the pinned generator makes of `protos`, byte by byte."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.architecture.source_tree import ROOT


def read_folder(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.iterdir()) if path.is_file()}


def test_generated_code_is_up_to_date(tmp_path: Path) -> None:
    done = subprocess.run(
        [ROOT / "scripts" / "generate_protos", tmp_path],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 0, done.stderr
    made, committed = read_folder(tmp_path / "mesh" / "v1"), read_folder(ROOT / "mesh" / "v1")
    assert sorted(made) == sorted(committed), "files are missing or stale: run scripts/generate_protos"
    different = [name for name in made if made[name] != committed[name]]
    assert not different, f"run scripts/generate_protos; different: {different}"
    name = "public_protocols.binpb"
    made_bytes = (tmp_path / "mesh" / "gateways" / name).read_bytes()
    assert made_bytes == (ROOT / "mesh" / "gateways" / name).read_bytes(), f"run scripts/generate_protos: {name}"
