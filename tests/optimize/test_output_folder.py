"""All or nothing on the disk."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from mesh.errors import StorageFull, UsageError
from mesh.optimize import output_folder
from mesh.optimize.output_folder import check_place, write_folder

OLD = {"float.onnx": b"old", "report.json": b"{}"}
NEW = {"float.onnx": b"new", "int8.onnx": b"small", "report.json": b"{1}"}


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_folder_is_written_and_replaced_as_a_whole(tmp_path: Path) -> None:
    out = tmp_path / "above" / "out"
    write_folder(out, NEW)
    assert content(out) == NEW
    write_folder(out, OLD)
    assert content(out) == OLD
    assert [path.name for path in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("had", [None, OLD])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_full_disk_and_ctrl_c_leave_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, had: dict[str, bytes] | None, error: BaseException
) -> None:
    out = tmp_path / "out"
    if had:
        write_folder(out, had)
    write = output_folder._write

    def fail_at_second(path: Path, data: bytes) -> None:
        if path.name == "int8.onnx":
            path.write_bytes(data[:2])
            raise error
        write(path, data)

    monkeypatch.setattr(output_folder, "_write", fail_at_second)
    expected: Any = StorageFull if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        write_folder(out, NEW)
    assert [path.name for path in tmp_path.iterdir()] == (["out"] if had else [])
    if had:
        assert content(out) == had


def test_only_its_own_results_are_replaced(tmp_path: Path) -> None:
    check_place(tmp_path / "new")
    check_place(tmp_path)
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match=r"thesis\.tex"):
        check_place(tmp_path)
    with pytest.raises(UsageError):
        check_place(tmp_path / "thesis.tex")
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(UsageError, match=r"thesis\.tex"):
        write_folder(tmp_path, NEW)


def test_models_alone_are_not_taken_for_a_result(tmp_path: Path) -> None:
    (tmp_path / "mine.onnx").write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"mine\.onnx"):
        check_place(tmp_path)
