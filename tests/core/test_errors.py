"""The error tree that the module's docstring draws is the one that its classes form."""

from __future__ import annotations

import re

import pytest

from mesh import errors
from mesh.errors import BY_CODE, MeshError, from_code

ROW = re.compile(r"^ {4}(?P<branch>[│├└─ ]*)(?P<name>[A-Z]\w+) +(?P<code>[a-z-]+) +(?P<exit>\d+)(?: {3}\S.*)?$")

FIELD = 4
"""Columns per level of the tree."""


def drawn_tree() -> list[tuple[str, str, str, int]]:
    """(class, base, code, exit code) per row of the docstring."""
    assert errors.__doc__ is not None
    rows: list[tuple[str, str, str, int]] = []
    ancestors = ["Exception"]
    for line in errors.__doc__.splitlines():
        match = ROW.match(line)
        if match is None:
            assert "──" not in line, f"not understood: {line!r}"
            continue
        depth = len(match["branch"]) // FIELD
        del ancestors[depth + 1 :]
        rows.append((match["name"], ancestors[depth], match["code"], int(match["exit"])))
        ancestors.append(match["name"])
    return rows


def defined_classes() -> list[type[MeshError]]:
    return [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, MeshError)]


def test_drawing_is_the_truth() -> None:
    drawn = {name: (base, code, exit_code) for name, base, code, exit_code in drawn_tree()}
    real = {kind.__name__: (kind.__bases__[0].__name__, kind.code, kind.exit_code) for kind in defined_classes()}
    assert drawn == real
    assert len(drawn) > 20


def test_every_class_has_a_code_of_its_own() -> None:
    classes = defined_classes()
    assert {kind.code: kind for kind in classes} == BY_CODE
    assert len(BY_CODE) == len(classes)
    assert all("code" in vars(kind) for kind in classes)


def test_exit_codes_are_those_promised_to_scripts() -> None:
    assert {kind.exit_code for kind in defined_classes()} == {1, 2, 3, 4, 5}


@pytest.mark.parametrize("code", sorted(BY_CODE))
def test_error_becomes_itself_again(code: str) -> None:
    error = from_code(code, "what and where", "what next")
    assert type(error) is BY_CODE[code]
    assert (error.code, error.message, error.hint) == (code, "what and where", "what next")


def test_unknown_code_becomes_the_base() -> None:
    assert type(from_code("of-a-newer-version", "text")) is MeshError


def test_text_shows_the_hint_only_where_there_is_one() -> None:
    assert str(MeshError("what")) == "what"
    assert str(MeshError("what", hint="next")) == "what (next)"
    assert MeshError("what").args == ("what",)
