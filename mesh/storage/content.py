"""The content store: model bytes by their SHA-256, never more than a given capacity.

A file's name is `<sha256>-<bytes>`, so that a start recognises what a power cut truncated without reading
it all. Content arrives through a `ContentWriter`, which reserves its announced size first: what is stored
plus what is arriving never exceeds the capacity. Room is made by removing what was used longest ago and
is not pinned; last use is the file's modification time, which survives restarts at the price of one
metadata write per use.

A node's runtime owns one store. All methods block on the disk and are safe from several threads.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mesh.core.ids import Sha256, check_sha256
from mesh.errors import NotFound, ProtocolViolation, StorageError, StorageFull
from mesh.storage.folder import (
    FILE_MODE,
    PARTIAL_SUFFIX,
    DataFolder,
    flush_folder,
    partial_path,
    removed_on_failure,
    translated,
)

CONTENT_FOLDER = "content"

DISK_RESERVE_BYTES = 16 << 20
"""Left free on the disk for everything else: records, logs, the system. 16 MiB is some thousand records."""

READ_BYTES = 1 << 20
"""Piece size when content is read through for verification."""

FILE_NAME_PATTERN = re.compile(r"([0-9a-f]{64})-([0-9]{1,15})")


@dataclass(slots=True)
class _Item:
    path: Path
    bytes: int
    last_use_ns: int
    pins: int = 0


class ContentStore:
    """Bytes by SHA-256 in the data folder's subfolder `content`."""

    def __init__(self, folder: DataFolder, capacity_bytes: int, clock_ns: Callable[[], int] = time.time_ns) -> None:
        """Scan what is there: partial and wrongly sized files are removed, then the least recently used
        until the rest fits `capacity_bytes`. Raises `StorageError` where the disk does not allow it."""
        self.capacity_bytes = capacity_bytes
        self._folder = folder
        self._path = folder.subfolder(CONTENT_FOLDER)
        self._clock_ns = clock_ns
        self._lock = threading.RLock()
        self._items: dict[Sha256, _Item] = {}
        self._reserved_bytes = 0
        self._latest_ns = 0
        self._scan()

    @property
    def used_bytes(self) -> int:
        """Stored bytes; what is still arriving is not counted."""
        with self._lock:
            return sum(item.bytes for item in self._items.values())

    def available_bytes(self) -> int:
        """The largest content that `begin` would accept now, evicting whatever is not pinned."""
        with self._lock:
            pinned = sum(item.bytes for item in self._items.values() if item.pins)
            evictable = self.used_bytes - pinned
            room = self.capacity_bytes - pinned - self._reserved_bytes
            return max(0, min(room, self._disk_room_bytes() + evictable))

    def contents(self) -> dict[Sha256, int]:
        """Everything stored and its size in bytes, least recently used first."""
        with self._lock:
            return {sha256: self._items[sha256].bytes for sha256 in self._by_last_use()}

    def has(self, sha256: Sha256) -> bool:
        with self._lock:
            return sha256 in self._items

    def path(self, sha256: Sha256) -> Path:
        """Where the content lies; counts as a use. Pin it to keep it there. Raises `NotFound`."""
        with self._lock:
            item = self._item(sha256)
            self._touch(item)
            return item.path

    def pin(self, sha256: Sha256) -> None:
        """Keep this content until `unpin` was called as often. Counts as a use. Raises `NotFound`."""
        with self._lock:
            item = self._item(sha256)
            item.pins += 1
            self._touch(item)

    def unpin(self, sha256: Sha256) -> None:
        """Take one pin back. Raises `NotFound` for unknown content, `ValueError` for content that has no pin."""
        with self._lock:
            item = self._item(sha256)
            if item.pins == 0:
                raise ValueError(f"content {sha256} is not pinned")
            item.pins -= 1

    def remove(self, sha256: Sha256) -> None:
        """Delete this content. Raises `NotFound`, or `StorageError` while it is pinned."""
        with self._lock:
            if self._item(sha256).pins:
                raise StorageError(f"content {sha256} is in use", hint="undeploy the model that uses it first")
            self._delete(sha256)

    def verify(self, sha256: Sha256) -> bool:
        """Read the content through; one whose bytes do not match its hash is removed, and False returned.

        Raises `NotFound`.
        """
        path = self.path(sha256)
        digest = hashlib.sha256()
        with translated("read", path), path.open("rb") as file:
            while piece := file.read(READ_BYTES):
                digest.update(piece)
        if digest.hexdigest() == sha256:
            return True
        with self._lock:
            if sha256 in self._items:
                self._delete(sha256)
        return False

    def begin(self, sha256: str, total_bytes: int) -> ContentWriter:
        """Make room for `total_bytes` and return the writer that takes them.

        Content that is already here is checked but not written again, and takes no room. Raises `UsageError` for a
        malformed hash, `ProtocolViolation` for a negative size, `StorageFull` where pinned content, the
        capacity or the disk leave no room (nothing is evicted then), or another `StorageError`.
        """
        checked = check_sha256(sha256)
        if total_bytes < 0:
            raise ProtocolViolation(f"content {sha256} is announced with {total_bytes} bytes")
        with self._lock:
            item = self._items.get(checked)
            if item is not None:
                item.pins += 1  # the writer's, until it is done
                return ContentWriter(self, checked, total_bytes, None)
            self._make_room(total_bytes)
            writer = ContentWriter(self, checked, total_bytes, partial_path(self._path / checked))
            self._reserved_bytes += total_bytes
            return writer

    def _make_room(self, total_bytes: int) -> None:
        available = self.available_bytes()
        if total_bytes > available:
            raise StorageFull(
                f"the content store {self._path} has room for {available} more bytes, {total_bytes} are needed",
                hint="undeploy a model, raise the store's capacity, or free disk space",
            )
        used = self.used_bytes
        disk_room = self._disk_room_bytes()
        for sha256 in self._by_last_use():
            if used + self._reserved_bytes + total_bytes <= self.capacity_bytes and total_bytes <= disk_room:
                return
            item = self._items[sha256]
            if not item.pins:
                self._delete(sha256)
                used -= item.bytes
                disk_room += item.bytes

    def _disk_room_bytes(self) -> int:
        return self._folder.disk_available_bytes() - DISK_RESERVE_BYTES

    def _by_last_use(self) -> list[Sha256]:
        return sorted(self._items, key=lambda sha256: self._items[sha256].last_use_ns)

    def _item(self, sha256: Sha256) -> _Item:
        item = self._items.get(sha256)
        if item is None:
            raise NotFound(f"content {sha256} is not in the store {self._path}")
        return item

    def _touch(self, item: _Item) -> None:
        # Strictly ascending, so that the order of use survives a clock that stands still or jumps back.
        self._latest_ns = item.last_use_ns = max(self._clock_ns(), self._latest_ns + 1)
        with translated("mark as used", item.path):
            os.utime(item.path, ns=(item.last_use_ns, item.last_use_ns))

    def _delete(self, sha256: Sha256) -> None:
        item = self._items[sha256]
        with translated("remove", item.path):
            item.path.unlink(missing_ok=True)
        del self._items[sha256]

    def _scan(self) -> None:
        with translated("read", self._path):
            for path in sorted(self._path.iterdir()):
                self._adopt(path)
        self._latest_ns = max((item.last_use_ns for item in self._items.values()), default=0)
        used = self.used_bytes
        for sha256 in self._by_last_use():
            if used <= self.capacity_bytes:
                break
            used -= self._items[sha256].bytes
            self._delete(sha256)

    def _adopt(self, path: Path) -> None:
        """Take the file in, or remove it if it is one of ours that is not whole. Foreign files stay untouched."""
        if path.name.endswith(PARTIAL_SUFFIX):
            path.unlink()
            return
        match = FILE_NAME_PATTERN.fullmatch(path.name)
        if match is None:
            return
        facts = path.lstat()
        if not stat.S_ISREG(facts.st_mode) or facts.st_size != int(match[2]) or Sha256(match[1]) in self._items:
            path.unlink()
            return
        self._items[Sha256(match[1])] = _Item(path, facts.st_size, facts.st_mtime_ns)

    def _release(self, sha256: Sha256, total_bytes: int, has_partial: bool) -> None:
        """End what `begin` took for a writer: its reservation, or its pin on content that was here."""
        with self._lock:
            if has_partial:
                self._reserved_bytes -= total_bytes
            else:
                self._items[sha256].pins -= 1

    def _admit(self, sha256: Sha256, total_bytes: int, partial: Path | None, pin: bool) -> None:
        """Rename a complete partial file into the store; where the content is here already, leave it."""
        with self._lock:
            if sha256 not in self._items and partial is not None:
                target = self._path / f"{sha256}-{total_bytes}"
                with translated("write", target), removed_on_failure(target):
                    partial.replace(target)
                    flush_folder(self._path)
                self._items[sha256] = _Item(target, total_bytes, 0)
            item = self._item(sha256)
            item.pins += pin
            self._touch(item)


class ContentWriter:
    """Takes the bytes of one content. As a context manager, leaving it without `commit` aborts.

    Used by one thread at a time.
    """

    def __init__(self, store: ContentStore, sha256: Sha256, total_bytes: int, partial: Path | None) -> None:
        self.sha256 = sha256
        self.total_bytes = total_bytes
        self.written_bytes = 0
        self._store = store
        self._partial = partial
        self._digest = hashlib.sha256()
        self._open = True
        self._file: io.RawIOBase | None = None
        if partial is not None:
            with translated("write", partial):
                # Unbuffered: an error belongs to the write that caused it, not to a later close.
                self._file = io.FileIO(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE), "wb")

    def __enter__(self) -> ContentWriter:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.abort()

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """Append. Raises `ProtocolViolation` beyond the announced size, `StorageFull` when the disk is;
        either way the partial file is gone and the writer closed."""
        view = memoryview(chunk).cast("B")
        self._check_open()
        if self.written_bytes + len(view) > self.total_bytes:
            self.abort()
            raise ProtocolViolation(f"content {self.sha256} is longer than the announced {self.total_bytes} bytes")
        if self._file is not None and self._partial is not None:
            try:
                with translated("write", self._partial):
                    rest = view
                    while rest:
                        rest = rest[self._file.write(rest) or 0 :]
            except BaseException:
                self.abort()
                raise
        self._digest.update(view)
        self.written_bytes += len(view)

    def commit(self, pin: bool = False) -> None:
        """Check size and hash, flush to the disk, make it visible; `pin` keeps it from that moment.

        Raises `ProtocolViolation` where the bytes are not those announced, or a `StorageError`; then
        nothing is left behind.
        """
        self._check_open()
        try:
            if self.written_bytes != self.total_bytes:
                raise ProtocolViolation(
                    f"content {self.sha256} ended after {self.written_bytes} of {self.total_bytes} bytes"
                )
            if self._digest.hexdigest() != self.sha256:
                raise ProtocolViolation(f"content {self.sha256} has the hash {self._digest.hexdigest()}")
            if self._file is not None and self._partial is not None:
                with translated("write", self._partial):
                    os.fsync(self._file.fileno())
                    self._file.close()
            self._store._admit(self.sha256, self.total_bytes, self._partial, pin)
        finally:
            self.abort()  # the reservation ends either way

    def abort(self) -> None:
        """Drop what was written and the reservation. Harmless when repeated or after `commit`."""
        if not self._open:
            return
        self._open = False
        self._store._release(self.sha256, self.total_bytes, self._partial is not None)
        if self._file is not None and self._partial is not None:
            with contextlib.suppress(OSError):  # a failed close loses only what is dropped anyway
                self._file.close()
            with translated("remove", self._partial):
                self._partial.unlink(missing_ok=True)

    def _check_open(self) -> None:
        if not self._open:
            raise ValueError(f"the writer of content {self.sha256} is closed")
