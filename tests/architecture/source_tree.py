"""What the architecture tests read: the modules of `mesh` and `nodes` as syntax trees, never imported.

Untracked modules count too, so that a rule is broken where it is written, not where it is committed.
Generated code (`mesh/v1`) is listed apart: it is judged by `test_generated_code.py` alone.
"""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("mesh", "nodes")
GENERATED = "mesh.v1"


@dataclass(frozen=True)
class Import:
    """One imported module name. `lazy` when it happens inside a function, so only if that function is called."""

    target: str
    line: int
    lazy: bool

    @property
    def top(self) -> str:
        return self.target.partition(".")[0]


@dataclass(frozen=True)
class Module:
    name: str
    path: Path

    @functools.cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @functools.cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    def place(self, line: int) -> str:
        return f"{self.path.relative_to(ROOT)}:{line}"

    def is_in(self, *packages: str) -> bool:
        """Whether this is one of `packages` (dotted names), or a module below one."""
        return any(self.name == package or self.name.startswith(package + ".") for package in packages)

    @functools.cached_property
    def imports(self) -> tuple[Import, ...]:
        return tuple(_find_imports(self.tree, lazy=False))

    @property
    def third_party_imports(self) -> list[Import]:
        known = {*sys.stdlib_module_names, *PACKAGES}
        return [each for each in self.imports if each.top not in known]


def _find_imports(node: ast.AST, *, lazy: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, child.lineno, lazy)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "relative imports are refused by the linter"
            for alias in child.names:
                # `from mesh import wire` imports mesh.wire; `from mesh.wire import X` may or may not be a module.
                submodule = f"{child.module}.{alias.name}"
                yield Import(submodule if _is_module(submodule) else str(child.module), child.lineno, lazy)
        else:
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _find_imports(child, lazy=lazy or inside)


def _is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return name.partition(".")[0] in PACKAGES and (path.is_dir() or path.with_suffix(".py").is_file())


def _name_module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def all_modules() -> tuple[Module, ...]:
    """Every module of the product, generated code left out, in a fixed order."""
    paths = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    modules = tuple(Module(_name_module(path), path) for path in paths)
    return tuple(module for module in modules if not module.is_in(GENERATED))


def parse_module(name: str, text: str) -> Module:
    """A module made of `text`: what the tests of the rules themselves judge."""
    module = Module(name, ROOT / Path(*name.split(".")).with_suffix(".py"))
    module.__dict__["text"] = text  # fills the cached property; the file need not exist
    return module
