"""What is typed about a plan: nodes are found by name or id, contradictions are told with a way out."""

from __future__ import annotations

import pytest

from mesh.core.ids import NodeId
from mesh.core.plan import Limits
from mesh.errors import MeshError, NotFound, UsageError
from nodes.wishes import Wishes, make_options

A, B, C = (NodeId(f"{index:06x}" + "0" * 26) for index in range(3))
NAMES = {A: "hall", B: "attic", C: "attic"}


def test_names_and_beginnings_of_ids_are_found() -> None:
    options = make_options(Wishes(first_on="hall", exclude=("000001", B), replicas=2, explain=True), b"", NAMES)
    assert options.limits == Limits(excluded=(B,), head=A, replicas=2)
    assert options.explain


def test_trusted_devices_are_those_of_the_file() -> None:
    assert make_options(Wishes(trusted_only=True), b"", NAMES, [A, C]).limits.only == (A, C)
    assert make_options(Wishes(), b"", NAMES, [A, C]).limits == Limits()


@pytest.mark.parametrize(
    ("said", "allowed"),
    [
        ("none", ()),
        ("zstd", ("zstd",)),
        ("fp16", ("zstd", "fp16", "fp16+zstd")),
        ("int8", ("zstd", "int8", "int8+zstd")),
        ("auto", ("zstd", "fp16", "fp16+zstd", "int8", "int8+zstd")),
    ],
)
def test_a_codec_allows_what_loses_no_more(said: str, allowed: tuple[str, ...]) -> None:
    limits = make_options(Wishes(codec=said, max_change=0.5), b"", NAMES).limits
    assert (limits.codecs, limits.answer_change) == (allowed, 0.005)


@pytest.mark.parametrize(
    ("wishes", "kind", "said"),
    [
        (Wishes(codec="zip"), UsageError, "unknown codec 'zip'.*one of none, zstd, fp16, int8, auto"),
        (Wishes(exclude=("cellar",)), NotFound, "there is no node 'cellar'.*there are: attic, attic, hall"),
        (Wishes(first_on="0000"), NotFound, "there is no node '0000'"),
        (Wishes(first_on="attic"), UsageError, "2 nodes are called 'attic'.*000001"),
        (Wishes(first_on="hall", exclude=("hall",)), UsageError, "hall is excluded and shall run the first stage"),
        (Wishes(trusted_only=True), UsageError, "written in a fleet file.*--exclude"),
        (Wishes(stages=2, replicas=2), UsageError, "one device per stage"),
        (Wishes(objective="speed"), UsageError, "unknown objective 'speed'.*throughput"),
    ],
)
def test_what_cannot_be_meant_is_refused(wishes: Wishes, kind: type[MeshError], said: str) -> None:
    with pytest.raises(kind, match=said):
        make_options(wishes, b"", NAMES)


def test_nobody_is_trusted() -> None:
    with pytest.raises(UsageError, match="no device of the fleet file is trusted"):
        make_options(Wishes(trusted_only=True), b"", NAMES, [])
    with pytest.raises(UsageError, match="hall shall run the first stage and is not among"):
        make_options(Wishes(trusted_only=True, first_on="hall"), b"", NAMES, [B, C])
