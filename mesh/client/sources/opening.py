"""From a source URL to a source: the table of schemes, and the help text that is made from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

from mesh.client.resource_url import parse_url
from mesh.client.sources import arrays, images, stdin, synthetic, wav
from mesh.client.sources.contract import Source, SourceFactory, SourceRequest, check_inputs
from mesh.core.tensor import TensorSpec


@dataclass(frozen=True, slots=True)
class SourceKind:
    open: SourceFactory
    options: tuple[str, ...]
    """Every key that the query may hold; the factory refuses combinations that make no sense."""
    help: str


SOURCES: dict[str, SourceKind] = {
    "npz": SourceKind(arrays.open_npz, arrays.NPZ_OPTIONS, arrays.NPZ_HELP),
    "npy": SourceKind(arrays.open_npy, arrays.NPY_OPTIONS, arrays.NPY_HELP),
    "images": SourceKind(images.open_images, images.OPTIONS, images.HELP),
    "wav": SourceKind(wav.open_wav, wav.OPTIONS, wav.HELP),
    "stdin": SourceKind(stdin.open_stdin, stdin.OPTIONS, stdin.HELP),
    "synthetic": SourceKind(synthetic.open_synthetic, synthetic.OPTIONS, synthetic.HELP),
}

SUFFIXES = {
    ".npz": "npz",
    ".npy": "npy",
    ".wav": "wav",
    **dict.fromkeys(sorted(images.SUFFIXES), "images"),
}
"""A plain path that ends like this needs no scheme; a plain path to a folder is `images`."""


def open_source(url: str, inputs: Sequence[TensorSpec], *, stdin: BinaryIO | None = None) -> Source:
    """Open `url` for a model that takes `inputs`; the caller closes the source.

    `stdin` stands in for standard input. Raises `UsageError` (URL or option makes no sense), `NotFound`,
    `TensorMismatch` (does not fit the model), `SourceUnreadable` (damaged, another format) or `MissingExtra`; where
    something shows up only while reading, the iterator raises it.
    """
    if url == "-" or url.startswith("-?"):
        url = "stdin:" + url[1:]
    parsed = parse_url(url, SOURCES, SUFFIXES, folder="images")
    kind = SOURCES[parsed.scheme]
    parsed.check_options(kind.options)
    return kind.open(SourceRequest(parsed, check_inputs(inputs), stdin))


def describe_sources() -> str:
    """The forms of a source URL, one or more lines each, for `mesh stream --help`."""
    return "\n".join(kind.help for kind in SOURCES.values())
