"""The repository speaks of itself only, installs from whatever index a machine has, and hides no failure."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.architecture.source_tree import ROOT

# Written in pieces, so that this file does not find itself.
REGISTRY_HOSTS = [
    host.replace(" ", ".")
    for host in ("pypi org", "pythonhosted org", "npmjs org", "npmjs com", "deb debian org", "crates io", "docker io")
]
FORBIDDEN = {
    "the host of a package registry": re.compile("|".join(re.escape(host) for host in REGISTRY_HOSTS), re.IGNORECASE),
    "a path of the machine it was written on": re.compile(r"(?<![\w.~*])/(?:" + "work|" + "root" + r")/\w"),
    "an address with a password in it": re.compile(r"://[^/\s:@{}'\"<$]+:[^/\s:@{}'\"<$]+@"),
}
SUPPRESSION_WITHOUT_RULE = re.compile(r"#\s*(?:noqa(?!: ?[A-Z]+\d)|type:\s*ignore(?!\[[\w, -]+\]))")


def list_files() -> list[Path]:
    """Tracked files and new ones that are not ignored."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.split("\0")
    return [ROOT / name for name in sorted(set(names)) if name and (ROOT / name).is_file()]


def find_forbidden(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.splitlines(), start=1):
        for what, pattern in FORBIDDEN.items():
            if pattern.search(line):
                yield number, what


def find_swallowed(text: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else ""
            empty = all(isinstance(each, ast.Pass) or _is_ellipsis(each) for each in node.body)
            if empty and caught in ("", "Exception", "BaseException"):
                yield node.lineno, "an error of any kind is swallowed"
        elif isinstance(node, ast.Call) and _suppresses_everything(node):
            yield node.lineno, "an error of any kind is suppressed"


def _suppresses_everything(node: ast.Call) -> bool:
    caught = {ast.unparse(each) for each in node.args}
    return ast.unparse(node.func) in ("suppress", "contextlib.suppress") and bool(
        caught & {"Exception", "BaseException"}
    )


def _is_ellipsis(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and node.value.value is ...


def find_blanket_suppressions(text: str) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT and SUPPRESSION_WITHOUT_RULE.search(token.string):
            yield token.start[0], "a suppression must name the rule it suppresses"


def test_no_file_names_a_registry_or_a_workplace() -> None:
    found = []
    for path in list_files():
        content = path.read_bytes()
        if b"\0" not in content[:8192]:
            problems = find_forbidden(content.decode("utf-8"))
            found += [f"{path.relative_to(ROOT)}:{line}: {what}" for line, what in problems]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize("rule", [find_swallowed, find_blanket_suppressions], ids=lambda rule: rule.__name__)
def test_no_python_file_hides_a_failure(rule: Callable[[str], Iterator[tuple[int, str]]]) -> None:
    paths = [path for path in list_files() if path.suffix == ".py" and ROOT / "mesh" / "v1" not in path.parents]
    assert paths
    found = [
        f"{path.relative_to(ROOT)}:{line}: {what}" for path in paths for line, what in rule(path.read_text("utf-8"))
    ]
    assert not found, "\n" + "\n".join(found)


def test_the_rules_see_violations() -> None:
    for text in (
        f"see {REGISTRY_HOSTS[0]}",
        "cd /" + "work/main",
        "open('/" + "root/x')",
        "mqtt://me:secret" + "@broker",
    ):
        assert list(find_forbidden(text)), text
    for text in ("try: f()\nexcept: pass", "try: f()\nexcept Exception: ...", "with suppress(Exception): f()"):
        assert list(find_swallowed(text)), text
    for text in ("x = 1  # no" + "qa\n", "x = 1  # type: " + "ignore\n"):
        assert list(find_blanket_suppressions(text)), text


def test_the_rules_let_good_text_be() -> None:
    assert not list(find_forbidden("the network/work/queue; see https://onnx.ai and mqtt://broker:1883/topic"))
    assert not list(find_swallowed("try: f()\nexcept FileNotFoundError: pass"))
    assert not list(find_blanket_suppressions("x = 1  # noqa: S101\ny = 2  # type: ignore[attr-defined]\n"))
