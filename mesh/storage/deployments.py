"""Deployment records and fences: what a node must still know after a power cut.

One file per deployment name holds the highest fence (term, generation) that this node has accepted for
the name, and the deployment itself as a blob that only the runtime understands. Both are written in one
atomic step. Removing a deployment leaves its fence, so that a plan from before the removal is still
refused.

The header with the fence has a checksum of its own: damage to the blob does not lose the fence. A damaged
file is set aside as `<name>.corrupt` and reported, never a reason not to start; the runtime does the same
with a blob that is whole and yet none that it understands (`set_aside`).

File: header `<8s magic, u64 term, u64 generation, u64 blob bytes, u8 has blob>`, SHA-256 of the header,
SHA-256 of the blob, blob. Little-endian. A node's runtime owns one store and uses it from one thread at a
time.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mesh.core.ids import NAME_PATTERN, DeploymentName, check_name
from mesh.core.plan import Fence
from mesh.errors import Overloaded, StaleGeneration, StorageError
from mesh.storage.folder import PARTIAL_SUFFIX, DataFolder, flush_folder, translated, write_atomically

DEPLOYMENTS_FOLDER = "deployments"
RECORD_SUFFIX = ".record"
CORRUPT_SUFFIX = ".corrupt"

MAX_BLOB_BYTES = 4 << 20
"""A deployment travels in one gRPC message, which is 4 MiB at most by default."""

MAX_NAMES = 4096
"""Names with a fence; bounds the folder. Beyond it the lowest fence without a deployment is forgotten."""

MAGIC = b"meshdep1"
_HEADER = struct.Struct("<8sQQQB")
_DIGEST_BYTES = 32
_PREFIX_BYTES = _HEADER.size + 2 * _DIGEST_BYTES


@dataclass(frozen=True, slots=True)
class Damage:
    """A record that could not be read."""

    name: str
    path: Path
    """Where the damaged file was set aside."""
    reason: str
    fence: Fence | None
    """The fence that was saved from it; None where it was lost as well."""


@dataclass(frozen=True, slots=True)
class _Record:
    fence: Fence
    blob: bytes | None


class DeploymentStore:
    """Blobs and fences by deployment name, in the data folder's subfolder `deployments`."""

    def __init__(self, folder: DataFolder) -> None:
        """Read everything. `damages` tells what was set aside. Raises `StorageError` where the disk refuses."""
        self._path = folder.subfolder(DEPLOYMENTS_FOLDER)
        self._records: dict[DeploymentName, _Record] = {}
        self.damages: list[Damage] = []
        with translated("read", self._path):
            paths = sorted(self._path.iterdir())
        for path in paths:
            if path.name.endswith(PARTIAL_SUFFIX):
                with translated("remove", path):
                    path.unlink()
            elif path.name.endswith(RECORD_SUFFIX):
                self._load(path)

    def load_all(self) -> dict[DeploymentName, bytes]:
        """The blobs of all deployments that are not removed."""
        return {name: record.blob for name, record in self._records.items() if record.blob is not None}

    def fences(self) -> Mapping[DeploymentName, Fence]:
        """The highest fence of every name, removed ones included."""
        return {name: record.fence for name, record in self._records.items()}

    def fence(self, name: DeploymentName) -> Fence | None:
        """The highest fence accepted for this name; None for a name that was never seen."""
        record = self._records.get(name)
        return record.fence if record else None

    def highest_term(self) -> int:
        """The highest term of any fence; 0 where there is none."""
        return max((record.fence.term for record in self._records.values()), default=0)

    def raise_fence(self, name: DeploymentName, fence: Fence) -> None:
        """Accept `fence` for the name, on disk before this returns. An equal one changes nothing.

        Raises `StaleGeneration` for a lower one, and as `store` does.
        """
        self._check_fence(name, fence)
        record = self._records.get(name)
        if record is None or record.fence != fence:
            self._write(name, _Record(fence, record.blob if record else None))

    def store(self, name: DeploymentName, blob: bytes, fence: Fence) -> None:
        """Keep the deployment and its fence, on disk before this returns.

        Raises `UsageError` for an invalid name, `StaleGeneration` below the fence in force, `Overloaded`
        for a blob above `MAX_BLOB_BYTES` or above `MAX_NAMES` live deployments, `StorageFull`,
        `StorageReadOnly` or `StorageError`; then the earlier record stands.
        """
        if len(blob) > MAX_BLOB_BYTES:
            raise Overloaded(f"deployment {name} has {len(blob)} bytes, at most {MAX_BLOB_BYTES} are kept")
        self._check_fence(name, fence)
        self._write(name, _Record(fence, bytes(blob)))

    def remove(self, name: DeploymentName) -> None:
        """Forget the deployment but not its fence. Nothing happens for an unknown name."""
        record = self._records.get(name)
        if record is not None and record.blob is not None:
            self._write(name, _Record(record.fence, None))

    def set_aside(self, name: DeploymentName, reason: str) -> None:
        """Treat the record as damaged: its file is kept as `<name>.corrupt`, its fence stays in force.

        `damages` tells it from then on. Raises as `store` does; a name without a deployment is left alone.
        """
        record = self._records.get(name)
        if record is not None and record.blob is not None:
            self._set_aside(self._record_path(name), str(name), record.fence, reason)

    def _check_fence(self, name: DeploymentName, fence: Fence) -> None:
        check_name(name, "deployment name")
        held = self.fence(name)
        if held is not None and fence < held:
            raise StaleGeneration(f"deployment {name}: plan {fence} is older than {held}, which is in force here")

    def _write(self, name: DeploymentName, record: _Record) -> None:
        if name not in self._records and len(self._records) >= MAX_NAMES:
            self._forget_one()
        write_atomically(self._record_path(name), encode_record(record.fence, record.blob))
        self._records[name] = record

    def _forget_one(self) -> None:
        removed = [name for name, record in self._records.items() if record.blob is None]
        if not removed:
            raise Overloaded(f"{MAX_NAMES} deployments are kept here already", hint="undeploy some first")
        lowest = min(removed, key=lambda name: self._records[name].fence)
        path = self._record_path(lowest)
        with translated("remove", path):
            path.unlink(missing_ok=True)
        del self._records[lowest]

    def _record_path(self, name: str) -> Path:
        return self._path / f"{name}{RECORD_SUFFIX}"

    def _load(self, path: Path) -> None:
        name = path.name.removesuffix(RECORD_SUFFIX)
        with translated("read", path), path.open("rb") as file:
            data = file.read(_PREFIX_BYTES + MAX_BLOB_BYTES + 1)
        fence, blob, reason = decode_record(data)
        if not NAME_PATTERN.fullmatch(name):
            reason = "its name is not a deployment's"
        if not reason and fence is not None:
            self._records[DeploymentName(name)] = _Record(fence, blob)
            return
        self._set_aside(path, name, fence, reason)

    def _set_aside(self, path: Path, name: str, fence: Fence | None, reason: str) -> None:
        aside = path.with_name(f"{name}{CORRUPT_SUFFIX}")
        with translated("set aside", path):
            path.replace(aside)
            flush_folder(self._path)
        self.damages.append(Damage(name=name, path=aside, reason=reason, fence=fence))
        if fence is not None and NAME_PATTERN.fullmatch(name):
            self._write(DeploymentName(name), _Record(fence, None))


def encode_record(fence: Fence, blob: bytes | None) -> bytes:
    """The bytes of one file. Terms and generations are unsigned 64-bit; raises `StorageError` otherwise."""
    body = blob or b""
    try:
        header = _HEADER.pack(MAGIC, fence.term, fence.generation, len(body), blob is not None)
    except struct.error as error:
        raise StorageError(f"fence {fence} is out of range") from error
    return header + hashlib.sha256(header).digest() + hashlib.sha256(body).digest() + body


def decode_record(data: bytes) -> tuple[Fence | None, bytes | None, str]:
    """(fence, blob, reason): `reason` is empty for a whole record, else says what is wrong.

    A sound fence is returned even where the blob is damaged.
    """
    if len(data) < _PREFIX_BYTES:
        return None, None, "it is cut off"
    header = data[: _HEADER.size]
    header_digest = data[_HEADER.size : _HEADER.size + _DIGEST_BYTES]
    blob_digest = data[_HEADER.size + _DIGEST_BYTES : _PREFIX_BYTES]
    body = data[_PREFIX_BYTES:]
    if hashlib.sha256(header).digest() != header_digest:
        return None, None, "its header does not match its checksum"
    magic, term, generation, blob_bytes, has_blob = _HEADER.unpack(header)
    if magic != MAGIC:
        return None, None, "it has another format"
    fence = Fence(term, generation)
    if len(body) != blob_bytes:
        return fence, None, f"it has {len(body)} of {blob_bytes} bytes"
    if hashlib.sha256(body).digest() != blob_digest:
        return fence, None, "its content does not match its checksum"
    return fence, body if has_blob else None, ""
