"""Names, digests and node ids at the door."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.core.ids import NAME_PATTERN, check_name, check_node_id, check_sha256, make_name
from mesh.errors import UsageError

FEW = settings(max_examples=100, deadline=None)


@pytest.mark.parametrize("name", ["a", "0", "cam-1", "a--b", "x" * 63, "1" * 63])
def test_valid_names_pass(name: str) -> None:
    assert check_name(name, "deployment") == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "-",
        "-a",
        "a-",
        "A",
        "a b",
        "a_b",
        "a.b",
        "a/b",
        "../a",
        "a\n",
        "a\0",
        "é",
        "+",
        "#",
        "$SYS",
        "x" * 64,
        "\u0661",  # a digit, but not of this alphabet
    ],
)
def test_invalid_names_are_refused_by_what_they_name(name: str) -> None:
    with pytest.raises(UsageError, match=r"^deployment "):
        check_name(name, "deployment")


def test_long_names_are_not_repeated_in_full() -> None:
    with pytest.raises(UsageError) as caught:
        check_name("A" * 10_000, "node")
    assert len(str(caught.value)) < 300


@FEW
@given(st.text(max_size=80))
def test_made_names_are_valid(text: str) -> None:
    made = make_name(text, "model")
    assert check_name(made, "model") == made
    assert make_name(made, "other") == made


@FEW
@given(st.from_regex(NAME_PATTERN, fullmatch=True))
def test_valid_names_are_left_alone(name: str) -> None:
    assert make_name(name, "model") == check_name(name, "model") == name


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("MobileNet V2.onnx", "mobilenet-v2-onnx"),
        ("__init__", "init"),
        ("", "model"),
        ("日本", "model"),
        ("x" * 100, "x" * 63),
        ("x" * 62 + "-y", "x" * 62),
    ],
)
def test_names_are_made_from_free_text(text: str, made: str) -> None:
    assert make_name(text, "model") == made


def test_digests_and_ids_pass() -> None:
    assert check_sha256("0123456789abcdef" * 4) == "0123456789abcdef" * 4
    assert check_node_id("0123456789abcdef" * 2) == "0123456789abcdef" * 2


@pytest.mark.parametrize("text", ["", "0" * 63, "0" * 65, "A" * 64, "g" * 64, "0" * 64 + "\n", "0" * 32])
def test_what_is_no_digest_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="SHA-256"):
        check_sha256(text)


@pytest.mark.parametrize("text", ["", "0" * 31, "0" * 33, "A" * 32, "g" * 32, "0" * 32 + "\n", "0" * 64])
def test_what_is_no_node_id_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="node id"):
        check_node_id(text)
