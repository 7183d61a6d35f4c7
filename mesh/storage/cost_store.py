"""What has been measured of models on devices, kept on disk between plans: a cache that nothing depends on.

One file holds four kinds of figures. A model on a device type: seconds of one inference, shared over its operator
groups. A segment on a device type: seconds per frame where it was loaded, which replace what a profile predicts for
that part. A segment, or a whole model, on a device type: memory that it took. A link between two nodes. Every figure
has the wall time at which it was taken and says whether it was measured or estimated; whoever uses it decides whether
it is young enough.

A coordinator owns one store and uses it from its event loop; `save` alone may run in a thread. Commands that plan by
themselves share one file: each adds what it measured to what others have written meanwhile, and replaces the file
whole, so that two at once can lose what one of them measured in the same moment, and never damage it. A file that is
cut off, altered, of another version or nonsense inside is set aside and everything is measured again: `damage` says
so in words. It is bounded in entries and bytes; the oldest go first.

File: `<8s magic, u16 version, u64 body bytes>`, SHA-256 of header and body, body (JSON, no NaN).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from mesh.core.costs import DeviceType
from mesh.core.fleet import Link
from mesh.core.ids import NodeId, Sha256
from mesh.core.plan import Segment
from mesh.errors import StorageError, UsageError
from mesh.storage.cost_figures import LinkCost, MemoryCost, ModelCost, SegmentCost, check
from mesh.storage.folder import FOLDER_MODE, translated, write_atomically

FILE_NAME = "costs"
CORRUPT_SUFFIX = ".corrupt"

VERSION = 3
"""Of the file, and of what its figures mean: how a model is grouped, how a time is taken. Raise it with either."""

MAX_MODELS = 256
"""Models times device types: years of trying out on a home's handful of boards."""
MAX_SEGMENTS = 2048
"""Of one plan there are as many as stages; each plan that is tried adds some."""
MAX_LINKS = 1024
"""Every ordered pair of 32 nodes."""
MAX_STORE_BYTES = 8 << 20
"""Written whole each time, to an SD card. 256 models of 1000 groups take 5 MiB."""
MAX_TEXT = 200
"""Characters of any text in a key."""
MAGIC = b"meshcost"
_HEADER = struct.Struct("<8sHQ")
_PREFIX_BYTES = _HEADER.size + 32


Cost = TypeVar("Cost", ModelCost, SegmentCost, MemoryCost, LinkCost)


class CostStore:
    """`path` is the file, None keeps everything in memory only; `is_shared` where other processes write it too."""

    def __init__(self, path: Path | None = None, *, is_shared: bool = False) -> None:
        """Reads what is there. Raises `StorageError` where the disk refuses."""
        self._path = path
        self.is_shared = is_shared
        self._forgotten: set[str] = set()
        self._models: dict[tuple[str, DeviceType], ModelCost] = {}
        self._segments: dict[tuple[str, DeviceType], SegmentCost] = {}
        self._memory: dict[tuple[str, DeviceType], MemoryCost] = {}
        self._links: dict[tuple[str, str], LinkCost] = {}
        self._is_saved = True
        self.damage = ""
        """Why what was stored is not used, in words; empty where all is well."""
        if path is not None:
            self._load(path)

    # Asking ---------------------------------------------------------------------------------------

    def model(self, sha256: str, device_type: DeviceType) -> ModelCost | None:
        return self._models.get((sha256, device_type))

    def segment(self, sha256: str, device_type: DeviceType) -> SegmentCost | None:
        return self._segments.get((sha256, device_type))

    def segments_of(self, model_sha256: str, device_type: DeviceType) -> list[SegmentCost]:
        """Every segment of the model that was measured on such a device, oldest first."""
        found = (cost for (_, where), cost in self._segments.items() if where == device_type)
        return sorted((cost for cost in found if cost.model_sha256 == model_sha256), key=lambda cost: cost.at)

    def memory_of(self, model_sha256: str, device_type: DeviceType) -> list[MemoryCost]:
        """Of the model and its segments as measured on such a device, oldest first."""
        found = (cost for (_, where), cost in self._memory.items() if where == device_type)
        return sorted((cost for cost in found if cost.model_sha256 == model_sha256), key=lambda cost: cost.at)

    def link(self, source: NodeId, target: NodeId) -> LinkCost | None:
        return self._links.get((source, target))

    # Telling --------------------------------------------------------------------------------------

    def put_model(self, sha256: Sha256, device_type: DeviceType, cost: ModelCost) -> None:
        """Segments of the model measured before on such devices are forgotten: a new profile begins anew."""
        self._segments = {
            key: known
            for key, known in self._segments.items()
            if not (key[1] == device_type and known.model_sha256 == sha256)
        }
        self._put(self._models, (str(sha256), device_type), cost, MAX_MODELS)

    def put_segment(
        self, model_sha256: Sha256, segment: Segment, device_type: DeviceType, seconds: float, at: float
    ) -> None:
        """What a loaded segment takes per frame, measured. Raises `UsageError` for nonsense."""
        if segment.sha256 is None:
            raise UsageError("a segment that has not been extracted has not been measured")
        cost = SegmentCost(model_sha256, segment.start, segment.end, seconds, at)
        self._put(self._segments, (str(segment.sha256), device_type), cost, MAX_SEGMENTS)

    def put_memory(self, sha256: Sha256, device_type: DeviceType, cost: MemoryCost) -> None:
        """`sha256` of the segment's content."""
        self._put(self._memory, (str(sha256), device_type), cost, MAX_SEGMENTS)

    def put_link(self, source: NodeId, target: NodeId, link: Link, at: float) -> None:
        ends = [link.sending, link.receiving]
        costs = [figure for end in ends if end for figure in (end.message_seconds, end.byte_seconds)]
        cost = LinkCost(link.latency_seconds, link.bytes_per_second, at, *(costs if all(ends) else ()))
        self._put(self._links, (str(source), str(target)), cost, MAX_LINKS)

    def forget_model(self, sha256: str) -> None:
        """What was measured of it and of its parts, anywhere."""
        self._forgotten.add(sha256)
        self._models = {key: cost for key, cost in self._models.items() if key[0] != sha256}
        self._segments = {key: cost for key, cost in self._segments.items() if cost.model_sha256 != sha256}
        self._memory = {key: cost for key, cost in self._memory.items() if cost.model_sha256 != sha256}
        self._is_saved = False

    def _put(self, costs: dict[Any, Cost], key: tuple[Any, Any], cost: Cost, most: int) -> None:
        costs[key] = cost
        self._is_saved = False
        if len(costs) > most:
            del costs[min(costs, key=lambda known: costs[known].at)]

    # On disk --------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write it if anything changed. Raises `StorageFull`, `StorageReadOnly` or `StorageError`."""
        if self._path is None or self._is_saved:
            return
        self._is_saved = True
        try:
            if self.is_shared:
                self._take_over(CostStore(self._path))
            data = self._encode()
            while len(data) > MAX_STORE_BYTES:
                del self._models[min(self._models, key=lambda known: self._models[known].at)]
                data = self._encode()
            write_atomically(self._path, data)
            self._forgotten = set()
        except BaseException:
            self._is_saved = False
            raise

    def keep_in_memory(self) -> None:
        """From now on; for where the disk refuses and what is kept there is not worth failing for."""
        self._path = None

    def _take_over(self, other: CostStore) -> None:
        """What `other` knows and this one does not, or not as lately; but nothing that was forgotten here."""
        for key, model in other._models.items():
            if key[0] not in self._forgotten and _is_later(model, self._models.get(key)):
                self._put(self._models, key, model, MAX_MODELS)
        for key, segment in other._segments.items():
            profile = self._models.get((segment.model_sha256, key[1]))
            is_void = segment.model_sha256 in self._forgotten or (profile is not None and profile.at > segment.at)
            if not is_void and _is_later(segment, self._segments.get(key)):
                self._put(self._segments, key, segment, MAX_SEGMENTS)
        for key, memory in other._memory.items():
            if memory.model_sha256 not in self._forgotten and _is_later(memory, self._memory.get(key)):
                self._put(self._memory, key, memory, MAX_SEGMENTS)
        for pair, link in other._links.items():
            if _is_later(link, self._links.get(pair)):
                self._put(self._links, pair, link, MAX_LINKS)

    def _encode(self) -> bytes:
        body = {
            "models": [[sha256, asdict(where), asdict(cost)] for (sha256, where), cost in [*self._models.items()]],
            "segments": [[sha256, asdict(where), asdict(cost)] for (sha256, where), cost in [*self._segments.items()]],
            "memory": [[sha256, asdict(where), asdict(cost)] for (sha256, where), cost in [*self._memory.items()]],
            "links": [[source, target, asdict(cost)] for (source, target), cost in [*self._links.items()]],
        }
        return encode_store(json.dumps(body, allow_nan=False, separators=(",", ":")).encode())

    def _load(self, path: Path) -> None:
        with translated("read", path), contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            data = file.read(MAX_STORE_BYTES + _PREFIX_BYTES + 1)
            try:
                self._decode(decode_store(data))
            except (ValueError, TypeError, KeyError, RecursionError, UsageError) as error:
                self._models, self._segments, self._memory, self._links = {}, {}, {}, {}
                aside = path.with_name(path.name + CORRUPT_SUFFIX)
                path.replace(aside)
                self.damage = f"stored measurements are set aside as {aside} and made again: {error}"

    def _decode(self, body: bytes) -> None:
        tables = json.loads(body, parse_constant=_refuse_constant)
        for sha256, where, cost in _rows(tables, "models", MAX_MODELS):
            known = ModelCost(**{**_fields(cost), "group_seconds": tuple(cost["group_seconds"])})
            self._models[_text(sha256), _device_type(where)] = known
        for sha256, where, cost in _rows(tables, "segments", MAX_SEGMENTS):
            self._segments[_text(sha256), _device_type(where)] = SegmentCost(**_fields(cost))
        for sha256, where, cost in _rows(tables, "memory", MAX_SEGMENTS):
            self._memory[_text(sha256), _device_type(where)] = MemoryCost(**_fields(cost))
        for source, target, cost in _rows(tables, "links", MAX_LINKS):
            self._links[_text(source), _text(target)] = LinkCost(**_fields(cost))


def open_shared(path: Path) -> tuple[CostStore, str]:
    """The store of commands that plan by themselves, and in words what is wrong with it; empty where all is well.

    In memory only where its folder cannot be made or read: such a command then measures, and goes on.
    """
    try:
        with translated("create the folder", path.parent):
            path.parent.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        store = CostStore(path, is_shared=True)
    except StorageError as error:
        return CostStore(), f"what is measured is not kept for the next time: {error.message}"
    return store, store.damage


def _is_later(cost: Cost, known: Cost | None) -> bool:
    return known is None or cost.at > known.at


def encode_store(body: bytes) -> bytes:
    header = _HEADER.pack(MAGIC, VERSION, len(body))
    return header + hashlib.sha256(header + body).digest() + body


def decode_store(data: bytes) -> bytes:
    """The body; raises `ValueError` that says what is wrong with the file."""
    if len(data) < _PREFIX_BYTES:
        raise ValueError("the file is cut off")
    header, digest, body = data[: _HEADER.size], data[_HEADER.size : _PREFIX_BYTES], data[_PREFIX_BYTES:]
    magic, version, size = _HEADER.unpack(header)
    if magic != MAGIC:
        raise ValueError("the file has another format")
    if version != VERSION:
        raise ValueError(f"the file has version {version}, this software writes {VERSION}")
    if len(body) != size:
        raise ValueError(f"the file has {len(body)} of {size} bytes" if len(body) < size else "the file is too long")
    if hashlib.sha256(header + body).digest() != digest:
        raise ValueError("the file does not match its checksum")
    return body


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is no figure")


def _rows(tables: Any, name: str, most: int) -> Iterator[list[Any]]:
    rows = tables[name]
    if not isinstance(rows, list) or len(rows) > most:
        raise ValueError(f"{name} is no list of at most {most} entries")
    yield from rows


def _fields(cost: Any) -> Mapping[str, Any]:
    if not isinstance(cost, dict) or not all(
        isinstance(cost.get(name, True), bool) for name in ("measured", "is_profiled")
    ):
        raise TypeError("an entry is no cost")
    if "model_sha256" in cost:
        _text(cost["model_sha256"])
    for name in ("start", "end", "peak_bytes"):
        if not isinstance(cost.get(name, 0), int):
            raise TypeError(f"{name} is no whole number")
    return cost


def _device_type(fields: Any) -> DeviceType:
    cores = fields["cores"]
    check(cores, "cores", 0.0, 1e6)
    return DeviceType(_text(fields["hardware"]), float(cores), _text(fields["runtime_version"]), _text(fields["mode"]))


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise TypeError("a key is no short text")
    return value
