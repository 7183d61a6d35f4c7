"""Opening what a source reads, with the operating system's refusals turned into errors that say what to do."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from mesh.errors import NotFound, SourceUnreadable


def check_file(path: Path) -> Path:
    """`path` if it is an existing regular file; raises `NotFound` or `SourceUnreadable`."""
    try:
        if path.is_file():
            return path
        exists = path.exists()
    except OSError as error:
        raise SourceUnreadable(f"{path}: {error.strerror or error}") from error
    if exists:
        raise SourceUnreadable(f"{path}: is no ordinary file", hint="name a file")
    raise NotFound(f"{path}: there is no such file", hint=f"the path is taken from {Path.cwd()} unless it is absolute")


def open_file(path: Path) -> BinaryIO:
    """Open an existing regular file for reading; raises `NotFound` or `SourceUnreadable`."""
    try:
        return check_file(path).open("rb")
    except OSError as error:
        raise SourceUnreadable(f"{path}: cannot be read: {error.strerror or error}") from error
