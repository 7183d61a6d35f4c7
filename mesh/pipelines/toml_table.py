"""A table of a pipeline file, and readers of its values: whatever is wrong is told with the table and the key. Pure.

A reader takes what TOML gave and returns it checked, or raises `ValueError` saying what was wanted; `Table` makes a
`UsageError` of that, which says where.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from mesh.errors import UsageError

MAX_LABELS = 100_000

MAX_TEXT_CHARACTERS = 4096

Value = TypeVar("Value")


class Table:
    """A TOML table whose errors say where they are."""

    def __init__(self, values: object, where: str) -> None:
        if not isinstance(values, dict):
            raise UsageError(f"{where} must be a table")
        self._values: dict[str, Any] = values
        self.where = where

    def refuse_unknown(self, *known: str) -> None:
        for key in self._values:
            if key not in known:
                near = difflib.get_close_matches(key, known, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
                raise UsageError(f"{self.where}: unknown key {key[:80]!r}", hint=hint)

    def get(self, key: str, read: Callable[[object], Value], default: Value) -> Value:
        return self._read(key, read) if key in self._values else default

    def _read(self, key: str, read: Callable[[object], Value]) -> Value:
        try:
            return read(self._values[key])
        except ValueError as error:
            raise UsageError(f"{self.where}: {key!r} {error}") from None

    def need(self, key: str, read: Callable[[object], Value]) -> Value:
        if key not in self._values:
            raise UsageError(f"{self.where}: {key!r} is missing")
        return self._read(key, read)

    def table(self, key: str) -> Table:
        return Table(self._values.get(key, {}), f"{self.where}, [{key}]")

    def has(self, key: str) -> bool:
        return key in self._values


def read_text(value: object) -> str:
    if not isinstance(value, str) or not value or len(value) > MAX_TEXT_CHARACTERS or "\0" in value:
        raise ValueError("must be a text")
    return value


def read_flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def read_number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("must be a number")
    return float(value)


def read_finite(value: object) -> float | None:
    return read_number(value)


def read_share(value: object) -> float:
    number = read_number(value)
    if not 0 <= number <= 1:
        raise ValueError("must be from 0 to 1")
    return number


def above_zero(most: float) -> Callable[[object], float]:
    def read(value: object) -> float:
        number = read_number(value)
        if not 0 < number <= most:
            raise ValueError(f"must be above 0 and at most {most:g}")
        return number

    return read


def whole(least: int, most: int) -> Callable[[object], int]:
    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError(f"must be a whole number from {least} to {most}")
        return value

    return read


def one_of(allowed: Sequence[str]) -> Callable[[object], str]:
    def read(value: object) -> str:
        if value not in allowed:
            raise ValueError(f"must be one of {', '.join(allowed)}")
        return str(value)

    return read


def read_labels(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > MAX_LABELS or not all(isinstance(label, str) for label in value):
        raise ValueError(f"must be a list of at most {MAX_LABELS} texts")
    return tuple(value)


def read_pointer(value: object) -> str:
    if not isinstance(value, str) or (value and not value.startswith("/")):
        raise ValueError('must be a JSON pointer such as "/values"')
    return value


def read_host(value: object) -> str:
    text = read_text(value)
    try:
        text.encode("idna")
    except UnicodeError:
        raise ValueError("must be a host name or an address") from None
    return text


def read_topic(value: object) -> str:
    text = read_text(value)
    if any(character in text for character in "#+\0") or text[0] in "/$" or text.endswith("/"):
        raise ValueError('must be the beginning of a topic, such as "mesh"')
    return text


def read_option(value: object) -> str:
    """A picture option as it is written in a source's URL."""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, list):
        return ",".join(repr(read_number(each)) for each in value)
    return value if isinstance(value, str) else repr(read_number(value))
