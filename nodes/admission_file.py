"""What devices were found to do with variants, kept between commands: a cache that nothing depends on.

One JSON file beside the commands' costs. Entries are of a node, its runtime, mode and governor, the variant's and the
golden set's bytes and the limits; any of them different, and the variant is judged again. A file that cannot be read is
made anew. Commands at the same time may lose each other's last entries, and never damage it: it is replaced whole.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mesh.core.fleet import Capabilities
from mesh.errors import StorageError
from mesh.optimize.admission import Admission
from mesh.storage.folder import FOLDER_MODE, translated, write_atomically

if TYPE_CHECKING:
    from nodes.admission import Gate

FILE_NAME = "admissions.json"
VERSION = 2

MAX_ENTRIES = 2048
"""Eight variants of 256 models and devices; the oldest go first."""

MAX_FILE_BYTES = 4 << 20

MAX_AGE_S = 30 * 86_400.0
"""Cooling and neighbours change what a device can do; arithmetic seldom does."""

_TEXTS = frozenset({"variant", "device", "reason"})


def key_of(sha256: str, golden_accuracy: float | None, gate: Gate, node: Capabilities) -> str:
    """Of one variant on one device, as it is now."""
    parts = [
        sha256,
        golden_accuracy,
        gate.golden_sha256,
        gate.max_drop_points,
        node.node_id,
        node.hardware,
        node.cores,
        node.runtime_version,
        node.mode,
        node.governor,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class AdmissionFile:
    """`path` None keeps what is put for as long as this object lives."""

    def __init__(self, path: Path | None, *, is_anew: bool = False) -> None:
        """`is_anew`: what is there is not used, only added to. Raises nothing: without the file all is judged."""
        self._path = path
        self._entries: dict[str, Admission] = {}
        self._fresh: set[str] | None = set() if is_anew else None
        if path is not None:
            self._entries = _read(path)

    def get(self, key: str) -> Admission | None:
        if self._fresh is not None and key not in self._fresh:
            return None
        found = self._entries.get(key)
        return found if found is not None and 0 <= time.time() - found.at <= MAX_AGE_S else None

    def put(self, key: str, admission: Admission) -> None:
        self._entries[key] = admission
        if self._fresh is not None:
            self._fresh.add(key)
        if len(self._entries) > MAX_ENTRIES:
            del self._entries[min(self._entries, key=lambda known: self._entries[known].at)]

    def save(self) -> str:
        """Write the file; why that could not be done, in words, or ""."""
        if self._path is None:
            return ""
        document = {"version": VERSION, "entries": {key: asdict(each) for key, each in self._entries.items()}}
        try:
            with translated("create the folder", self._path.parent):
                self._path.parent.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
            write_atomically(self._path, json.dumps(document, allow_nan=False).encode())
        except StorageError as error:
            return f"what devices were found to do is not kept for the next time: {error.message}"
        return ""


def _read(path: Path) -> dict[str, Admission]:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            return {}
        document: Any = json.loads(path.read_bytes(), parse_constant=_refuse)
        if document["version"] != VERSION:
            return {}
        return {str(key): _admission(fields) for key, fields in document["entries"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}  # a cache: everything is judged again, and the file is replaced


def _refuse(name: str) -> None:
    raise ValueError(name)


def _admission(fields: Any) -> Admission:
    for name, value in fields.items():
        is_right = isinstance(value, str) if name in _TEXTS else value is None or _is_number(value)
        if not is_right:
            raise ValueError(f"{name} is {value!r:.80}")
    return Admission(**fields)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
