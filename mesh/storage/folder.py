"""The data folder: one daemon's own place on disk.

`DataFolder.open` creates the folder (0700), takes an exclusive `flock` on its file `lock` and holds it
until `close`, so that two daemons never share an identity or a content store. The kernel releases the
lock when the process dies, whatever the cause; the file itself stays. The daemon owns the object; the
stores of this package write through it.

Layout::

    format        "1": the version of this layout
    lock          process id of the daemon that holds the folder
    identity.pem  private key (mesh.storage.identity)
    content/      model bytes by SHA-256 (mesh.storage.content)
    deployments/  records and fences (mesh.storage.deployments)

Everything that touches the disk runs inside `translated`, the one place where operating system errors
become errors of the mesh.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from mesh.errors import FolderInUse, StorageError, StorageFull, StorageReadOnly

FORMAT_VERSION = 1
"""Of the layout above; a folder with a higher one was written by newer software and is refused."""

FOLDER_MODE = 0o700
FILE_MODE = 0o600

PARTIAL_SUFFIX = ".partial"
"""Ends the name of every file that is still being written; such files may be removed at any start."""

SMALL_FILE_BYTES = 64 << 10
"""Upper bound for files that are read whole to learn one fact (lock, format, key)."""

CHOOSE_ANOTHER = "choose another folder with --data-dir"

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}
_NOT_A_FOLDER = {errno.ENOTDIR, errno.EEXIST, errno.EISDIR}

_partial_numbers = itertools.count()


@contextlib.contextmanager
def translated(action: str, path: Path) -> Iterator[None]:
    """Turn an `OSError` inside into `StorageFull`, `StorageReadOnly` or `StorageError`.

    `action` completes "cannot ... PATH", e.g. "write". EFBIG counts as full: it is the process's own
    file size limit.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        message = f"cannot {action} {path}: {reason}"
        if error.errno in _FULL:
            raise StorageFull(message, hint=f"free some space, or {CHOOSE_ANOTHER}") from error
        if error.errno in _READ_ONLY:
            hint = f"this user needs to be able to write there; change that, or {CHOOSE_ANOTHER}"
            raise StorageReadOnly(message, hint=hint) from error
        if error.errno in _NOT_A_FOLDER:
            raise StorageError(message, hint=f"something else is in the way: move it, or {CHOOSE_ANOTHER}") from error
        raise StorageError(message, hint="check the disk and the file system's messages") from error


class DataFolder:
    """An open, locked data folder. Use `DataFolder.open`; close it, or use it as a context manager."""

    def __init__(self, path: Path, lock_descriptor: int) -> None:
        self.path = path
        self._lock_descriptor = lock_descriptor

    @classmethod
    def open(cls, path: Path) -> DataFolder:
        """Create or open the folder at `path` and lock it.

        Raises `FolderInUse` (naming the process that holds it), `StorageReadOnly`, `StorageFull`, or
        `StorageError` for a folder that is not ours to use: no folder at all, writable by anyone, of
        another user, or written by newer software.
        """
        path = Path(path).expanduser().absolute()
        with translated("create the data folder", path):
            path.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
            facts = path.stat()
        _check_ownership(path, facts)
        folder = cls(path, _acquire_lock(path / "lock"))
        try:
            folder._check_format()
        except BaseException:
            folder.close()
            raise
        return folder

    def __enter__(self) -> DataFolder:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock. Harmless when repeated."""
        if self._lock_descriptor >= 0:
            os.close(self._lock_descriptor)
            self._lock_descriptor = -1

    def subfolder(self, name: str) -> Path:
        """The path of a folder inside, created (0700) where missing."""
        path = self.path / name
        with translated("create", path):
            path.mkdir(mode=FOLDER_MODE, exist_ok=True)
        return path

    def disk_available_bytes(self) -> int:
        """Bytes that an unprivileged process may still write to this disk."""
        with translated("examine", self.path):
            return shutil.disk_usage(self.path).free

    def _check_format(self) -> None:
        path = self.path / "format"
        if not path.exists():
            write_atomically(path, f"{FORMAT_VERSION}\n".encode())
            return
        text = read_small_file(path).decode("ascii", "replace").strip()
        if not text.isdecimal() or len(text) > 9:
            raise StorageError(f"{path} does not say a format version", hint=CHOOSE_ANOTHER)
        if int(text) > FORMAT_VERSION:
            raise StorageError(
                f"the data folder {self.path} has format {text}, this software knows up to {FORMAT_VERSION}",
                hint=f"upgrade this software, or {CHOOSE_ANOTHER}",
            )


def write_atomically(path: Path, data: bytes) -> None:
    """Replace the file at `path` by `data` (0600): after a crash there is the old or the new one, whole.

    Flushes the file and its folder to the disk. Raises as `translated` does and leaves nothing behind.
    """
    partial = partial_path(path)
    with translated("write", path), removed_on_failure(partial):
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        flush_folder(path.parent)


def partial_path(path: Path) -> Path:
    """A name beside `path` that no other writer of this or another process uses."""
    return path.with_name(f"{path.name}.{os.getpid()}-{next(_partial_numbers)}{PARTIAL_SUFFIX}")


@contextlib.contextmanager
def removed_on_failure(path: Path) -> Iterator[None]:
    """Remove the file at `path`, if it is there, when the block raises."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # the first error is the one to tell
            path.unlink()
        raise


def flush_folder(path: Path) -> None:
    """Flush a folder's entries to the disk, so that a rename in it survives a power cut. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_small_file(path: Path) -> bytes:
    """The file's bytes; raises `StorageError` if it is larger than `SMALL_FILE_BYTES`, or as `translated` does."""
    with translated("read", path), path.open("rb") as file:
        data = file.read(SMALL_FILE_BYTES + 1)
    if len(data) > SMALL_FILE_BYTES:
        raise StorageError(
            f"{path} is larger than {SMALL_FILE_BYTES} bytes", hint="it was not written by this software"
        )
    return data


def _check_ownership(path: Path, facts: os.stat_result) -> None:
    if os.geteuid() not in (facts.st_uid, 0):
        raise StorageError(
            f"the data folder {path} belongs to user id {facts.st_uid}, this process runs as {os.geteuid()}",
            hint=f"run as that user, or {CHOOSE_ANOTHER}",
        )
    if facts.st_mode & stat.S_IWOTH:
        raise StorageError(
            f"anyone may write to the data folder {path}",
            hint=f"keys and models are kept there: run chmod 700 on it, or {CHOOSE_ANOTHER}",
        )


def _acquire_lock(path: Path) -> int:
    """Open and lock the lock file, write our process id into it, return the descriptor that holds the lock."""
    with translated("open", path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, FILE_MODE)
    try:
        with translated("lock", path):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(descriptor, 32).decode("ascii", "replace").strip()
                who = f"process {holder}" if holder.isdecimal() else "another process"
                raise FolderInUse(
                    f"the data folder {path.parent} is in use by {who}",
                    hint=f"stop that one, or {CHOOSE_ANOTHER}",
                ) from None
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
