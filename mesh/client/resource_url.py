"""Source and sink URLs: `SCHEME:PATH?key=value&key=value`, or a plain path where its kind is plain.

What a person types at `mesh stream --source URL --sink URL`. The path is taken literally (no percent decoding, `~` is
the home folder) and the query begins at the *last* `?`, so that a file whose name holds a `?` is written with a `?`
after it. Values of the query are percent-decoded. Every mistake is a `UsageError` that names the URL, the option and
what would be right; nothing is ignored silently. Pure but for asking the file system whether a plain path is there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl

from mesh.errors import UsageError

# Two characters at least: "C:\data.npz" is a path.
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ResourceUrl:
    """A parsed URL. `options` are the query's pairs, not yet interpreted; read them by the methods."""

    text: str
    scheme: str
    path: str
    options: Mapping[str, str]

    @property
    def file(self) -> Path:
        """The path on disk; raises `UsageError` where the URL gives none."""
        if not self.path:
            raise UsageError(f"{self.text!r} names no file", hint=f"write {self.scheme}:PATH")
        if "\0" in self.path:
            raise UsageError(f"{self.text!r}: a path cannot hold a NUL character")
        try:
            return Path(self.path).expanduser()
        except RuntimeError as error:
            raise UsageError(f"{self.text!r}: {error}", hint="write the path out") from None

    def check_options(self, allowed: Collection[str]) -> None:
        """Raise `UsageError` if the query holds a key that is not in `allowed`."""
        for key in self.options:
            if key not in allowed:
                known = ", ".join(allowed) if allowed else "none"
                raise UsageError(f"{self.text!r}: unknown option {key!r}", hint=f"{self.scheme} takes: {known}")

    def wrong(self, key: str, want: str) -> UsageError:
        """The error for a value of option `key` that makes no sense; `want` says what would."""
        return UsageError(f"{self.text!r}: {key}={self.options.get(key, '')!r} makes no sense", hint=f"{key} is {want}")

    def number(self, key: str, default: float | None = None, *, want: str = "a number above 0") -> float | None:
        """A finite number above 0, or `default` where the option is absent."""
        if key not in self.options:
            return default
        try:
            value = float(self.options[key])
        except ValueError:
            raise self.wrong(key, want) from None
        if not math.isfinite(value) or value <= 0:
            raise self.wrong(key, want)
        return value

    def numbers(self, key: str) -> tuple[float, ...] | None:
        """Finite numbers separated by commas, or None where the option is absent."""
        if key not in self.options:
            return None
        try:
            values = tuple(float(part) for part in self.options[key].split(","))
        except ValueError:
            raise self.wrong(key, "a number, or several separated by commas") from None
        if not all(math.isfinite(value) for value in values):
            raise self.wrong(key, "a finite number, or several separated by commas")
        return values

    def integer(self, key: str, default: int | None = None, *, minimum: int | None = 0) -> int | None:
        """A whole number of at least `minimum`, or `default` where the option is absent."""
        if key not in self.options:
            return default
        want = "a whole number" if minimum is None else f"a whole number of at least {minimum}"
        try:
            value = int(self.options[key])
        except ValueError:
            raise self.wrong(key, want) from None
        if minimum is not None and value < minimum:
            raise self.wrong(key, want)
        return value

    def flag(self, key: str) -> bool:
        """Whether an on/off option is on; absent is off."""
        return self.choice(key, ("0", "1"), "0") == "1"

    def choice(self, key: str, allowed: Collection[str], default: str) -> str:
        """One of `allowed`, or `default` where the option is absent."""
        value = self.options.get(key, default)
        if value not in allowed:
            raise self.wrong(key, "one of " + ", ".join(allowed))
        return value


def parse_url(text: str, schemes: Collection[str], suffixes: Mapping[str, str], *, folder: str | None) -> ResourceUrl:
    """Parse `text` for a table of known `schemes`.

    `suffixes` maps the lower-case suffix of a plain path (".npz") to its scheme, `folder` is the scheme of a plain path
    to an existing folder. Raises `UsageError` for an unknown scheme, a plain path of unknown kind, or a bad query.
    """
    head, mark, query = text.rpartition("?")
    body = head if mark else text
    options = _parse_query(text, query) if mark else {}
    match = _SCHEME.fullmatch(body)
    if match and match.group(1) in schemes:
        return ResourceUrl(text, match.group(1), match.group(2), options)
    suffix = Path(body).suffix.lower()
    if match and not _exists(body):
        raise UsageError(f"{text!r}: unknown scheme {match.group(1)!r}", hint="known: " + ", ".join(schemes))
    if suffix in suffixes:
        return ResourceUrl(text, suffixes[suffix], body, options)
    if folder is not None and body and _exists(body, folder=True):
        return ResourceUrl(text, folder, body, options)
    raise UsageError(
        f"{text!r} does not say what it is",
        hint=f"write SCHEME:PATH, with one of {', '.join(schemes)}, or a file ending in {', '.join(suffixes)}",
    )


def _exists(path: str, *, folder: bool = False) -> bool:
    try:
        place = Path(path).expanduser()
        return place.is_dir() if folder else place.exists()
    except (OSError, RuntimeError):  # a name that is too long, a home folder that is unknown
        return False


def _parse_query(text: str, query: str) -> dict[str, str]:
    if not query:
        return {}
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True, errors="strict")
    except ValueError:  # UnicodeDecodeError is one too
        raise UsageError(f"{text!r}: the part after '?' is not key=value&key=value") from None
    options: dict[str, str] = {}
    for key, value in pairs:
        if key in options:
            raise UsageError(f"{text!r}: option {key!r} is given twice")
        options[key] = value
    return options
