"""Processor time of a process and of what it started, from a /proc that is made up and from the real one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from mesh.hardware.processor_time import TICKS_PER_S, processor_seconds


def write_process(root: Path, process: int, parent: int, ticks: int, name: str = "mesh") -> None:
    folder = root / str(process)
    folder.mkdir(parents=True)
    fields = [str(process), f"({name})", "S", str(parent), *["0"] * 9, str(ticks), "0", *["0"] * 30]
    (folder / "stat").write_text(" ".join(fields))


def test_descendants_count_and_others_do_not(tmp_path: Path) -> None:
    write_process(tmp_path, 10, 1, 100)
    write_process(tmp_path, 11, 10, 20, "a name) with (R 1 parentheses")
    write_process(tmp_path, 12, 11, 3)
    write_process(tmp_path, 13, 1, 4000)
    (tmp_path / "14").mkdir()  # it ended at this moment
    (tmp_path / "uptime").write_text("1")
    assert processor_seconds(10, tmp_path) == 123 / TICKS_PER_S
    assert processor_seconds(99, tmp_path) == 0


def test_a_child_that_works_is_counted_while_it_lives() -> None:
    program = "import sys\nwhile True:\n for _ in range(10**6): pass\n print(flush=True)"
    before = processor_seconds(os.getpid())
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        for _ in range(10):
            child.stdout.readline()
        during = processor_seconds(os.getpid())
        child.kill()
    assert during > before
