"""The folder that `mesh optimize` leaves: written beside its place under another name, then renamed. All or nothing."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from mesh.errors import StorageError, StorageFull, StorageReadOnly, UsageError
from mesh.optimize.golden_set import GOLDEN_FILE
from mesh.optimize.plot import PLOT

REPORT = "report.json"

OWN_FILES = frozenset({REPORT, GOLDEN_FILE, PLOT})
"""Besides the variants."""

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


def check_place(out: Path) -> None:
    """Raise `UsageError` unless `out` is free, empty, or an earlier result that may be replaced.

    Asked before anything is computed, and once more before anything is written.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UsageError(f"{out} exists and is no folder", hint="name a new folder with --out")
    if not out.is_dir():
        return
    names = {each.name for each in out.iterdir()}
    strange = sorted(name for name in names if name not in OWN_FILES and not name.endswith(".onnx"))
    if names and (REPORT not in names or strange):
        raise UsageError(
            f"{out} holds other files ({', '.join(strange or sorted(names))[:200]})",
            hint="name a new folder with --out: the whole folder would be replaced",
        )


def write_folder(out: Path, files: Mapping[str, bytes]) -> None:
    """Put `files` (name to bytes) into `out`, in place of an earlier result. Raises `StorageError` and `UsageError`."""
    out = out.absolute()
    check_place(out)
    partial = out.with_name(f".{out.name[:100]}.{os.getpid()}.partial")
    old = out.with_name(f".{out.name[:100]}.{os.getpid()}.old")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        for name, data in files.items():
            _write(partial / name, data)
        _flush(partial)
        if out.exists():
            out.rename(old)
        try:
            partial.rename(out)
        except BaseException:
            if old.exists():
                old.rename(out)
            raise
        _flush(out.parent)
    except OSError as error:
        raise translated(error, str(out)) from None
    finally:
        for left in (partial, old):
            with contextlib.suppress(OSError):  # the first error is the one to tell
                shutil.rmtree(left, ignore_errors=True)


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def translated(error: OSError, place: str) -> StorageError:
    """The `StorageError` for what the disk said while `place` was written."""
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        return StorageFull(f"{place}: {reason}", hint="free some space, or write elsewhere; nothing was left there")
    if error.errno in _READ_ONLY:
        return StorageReadOnly(f"{place}: {reason}", hint="choose a place that you may write to")
    return StorageError(f"{place}: {reason}", hint="nothing was left there")
