"""From a sink URL to a sink: the table of schemes, and the help text that is made from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

from mesh.client.resource_url import parse_url
from mesh.client.sinks import jsonl, npz, null
from mesh.client.sinks.contract import Sink, SinkFactory, SinkRequest
from mesh.core.tensor import TensorSpec


@dataclass(frozen=True, slots=True)
class SinkKind:
    open: SinkFactory
    options: tuple[str, ...]
    help: str


SINKS: dict[str, SinkKind] = {
    "jsonl": SinkKind(jsonl.open_jsonl, jsonl.OPTIONS, jsonl.HELP),
    "npz": SinkKind(npz.open_npz, npz.OPTIONS, npz.HELP),
    "null": SinkKind(null.open_null, null.OPTIONS, null.HELP),
}

SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".npz": "npz"}
"""A plain path that ends like this needs no scheme."""


def open_sink(url: str, outputs: Sequence[TensorSpec], *, stdout: TextIO | None = None) -> Sink:
    """Open `url` for a model that answers `outputs`; the caller closes the sink.

    `stdout` stands in for standard output. Raises `UsageError`, `MissingExtra`, or a `StorageError` where the place
    cannot be written.
    """
    if url == "-" or url.startswith("-?"):
        url = "jsonl:" + url
    parsed = parse_url(url, SINKS, SUFFIXES, folder=None)
    kind = SINKS[parsed.scheme]
    parsed.check_options(kind.options)
    return kind.open(SinkRequest(parsed, tuple(outputs), stdout))


def describe_sinks() -> str:
    """The forms of a sink URL, two lines each, for `mesh stream --help`."""
    return "\n".join(kind.help for kind in SINKS.values())
