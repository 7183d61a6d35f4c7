from __future__ import annotations

from pathlib import Path

import pytest

from mesh.client.resource_url import ResourceUrl, parse_url
from mesh.errors import UsageError

SCHEMES = ("npz", "wav", "images")
SUFFIXES = {".npz": "npz", ".wav": "wav"}


def parse(text: str) -> ResourceUrl:
    return parse_url(text, SCHEMES, SUFFIXES, folder="images")


@pytest.mark.parametrize(
    ("text", "scheme", "path", "options"),
    [
        ("npz:a/b.npz", "npz", "a/b.npz", {}),
        ("a/b.npz", "npz", "a/b.npz", {}),
        ("B.NPZ?key=x", "npz", "B.NPZ", {"key": "x"}),
        ("wav:-?a=1&b=", "wav", "-", {"a": "1", "b": ""}),
        ("npz:50%25.npz?key=a%20b+c", "npz", "50%25.npz", {"key": "a b c"}),
        ("npz:what?.npz?", "npz", "what?.npz", {}),
        ("C:\\data\\x.npz", "npz", "C:\\data\\x.npz", {}),
    ],
)
def test_parses(text: str, scheme: str, path: str, options: dict[str, str]) -> None:
    url = parse(text)
    assert (url.scheme, url.path, dict(url.options)) == (scheme, path, options)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ftp:x.npz", "unknown scheme 'ftp'"),
        ("thing", "does not say what it is"),
        ("", "does not say what it is"),
        ("x.npz?key", "not key=value"),
        ("x.npz?a=1&a=2", "given twice"),
        ("x.npz?a=%ff", "not key=value"),
        ("y" * 5000, "does not say what it is"),
        ("zz:" + "y" * 5000, "unknown scheme 'zz'"),
    ],
)
def test_refuses(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse(text)


def test_a_folder_is_a_folder_of_images(tmp_path: Path) -> None:
    assert parse(str(tmp_path)).scheme == "images"


def test_a_file_whose_name_looks_like_a_scheme_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run:3.npz").touch()
    assert parse("run:3.npz").path == "run:3.npz"


def test_the_home_folder_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert parse("npz:~/x.npz").file == Path("/somewhere/x.npz")


@pytest.mark.parametrize("text", ["npz:", "npz:a\0b", "npz:~no-such-user-here/x"])
def test_a_path_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        _ = parse(text).file


def test_an_unknown_option_is_named_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"unknown option 'kye' \(npz takes: key, start\)"):
        parse("x.npz?kye=1").check_options(("key", "start"))


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "0", "-1", "1e999", "x", "", "1,2"])
def test_numbers_that_make_no_sense_are_refused(value: str) -> None:
    with pytest.raises(UsageError, match="window="):
        parse(f"x.wav?window={value}").number("window")


@pytest.mark.parametrize("value", ["nan", "1,inf", "a", "", "1,,2"])
def test_lists_that_make_no_sense_are_refused(value: str) -> None:
    with pytest.raises(UsageError, match="mean="):
        parse(f"x.wav?mean={value}").numbers("mean")


@pytest.mark.parametrize("value", ["-1", "1.5", "nan", "", "1e3"])
def test_whole_numbers_that_make_no_sense_are_refused(value: str) -> None:
    with pytest.raises(UsageError, match="start="):
        parse(f"x.wav?start={value}").integer("start")


def test_options_are_read() -> None:
    url = parse("x.wav?window=0.5&mean=1,-2&start=3&on=1&tail=pad")
    assert url.number("window") == 0.5
    assert url.numbers("mean") == (1.0, -2.0)
    assert url.integer("start") == 3
    assert url.flag("on")
    assert not url.flag("off")
    assert url.choice("tail", ("pad", "drop"), "drop") == "pad"
    assert url.choice("other", ("pad", "drop"), "drop") == "drop"
    with pytest.raises(UsageError, match="one of drop, keep"):
        url.choice("tail", ("drop", "keep"), "drop")
