"""The operating system's refusals to write, as errors that say what to do."""

from __future__ import annotations

import errno

from mesh.errors import StorageError, StorageFull, StorageReadOnly

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


def storage_error(error: OSError, place: str) -> StorageError:
    """The `StorageError` for an `OSError` met while writing to `place`."""
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        return StorageFull(f"{place}: {reason}", hint="free some space, or write elsewhere")
    if error.errno in _READ_ONLY:
        return StorageReadOnly(f"{place}: {reason}", hint="choose a place that you may write to")
    if error.errno == errno.ENOENT:
        return StorageError(f"{place}: the folder does not exist", hint="create it first")
    if error.errno == errno.EPIPE:
        return StorageError(f"{place}: the reader went away")
    return StorageError(f"{place}: {reason}")
