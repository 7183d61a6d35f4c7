"""A sensor client runs where there is no NumPy, ONNX Runtime or cryptography: on the base install, and quickly."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.architecture.source_tree import ROOT

HEAVY = ("PIL", "cryptography", "numpy", "onnx", "onnxruntime", "rich")

# A finder in front of all others answers for the heavy libraries as if they were not installed.
BLOCKER = f"""
import importlib, sys

HEAVY = {HEAVY!r}


class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HEAVY:
            raise ModuleNotFoundError(f"{{name}} is imported on the light path", name=name)


sys.meta_path.insert(0, Blocker())
"""
# What only looks (importlib.util.find_spec) is refused above as well; what loads unblocked is found here.
LOADED = f"""
import importlib, sys
importlib.import_module(sys.argv[1])
loaded = sorted(set({HEAVY!r}) & set(sys.modules))
sys.exit(f"loads {{loaded}}" if loaded else 0)
"""
LIGHT = ("mesh", "mesh.client", "mesh.discovery", "mesh.wire", "nodes.cli")


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=50
    )


@pytest.mark.parametrize("name", LIGHT)
def test_imports_without_heavy_libraries(name: str) -> None:
    done = run_python(BLOCKER + "importlib.import_module(sys.argv[1])", name)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", LIGHT)
def test_loads_no_heavy_library_where_there_are_some(name: str) -> None:
    done = run_python(LOADED, name)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", HEAVY)
def test_the_blocker_blocks(name: str) -> None:
    done = run_python(BLOCKER + "importlib.import_module(sys.argv[1])", name)
    assert "is imported on the light path" in done.stderr


def test_every_public_name_of_mesh_resolves() -> None:
    done = run_python("import mesh\nfor name in getattr(mesh, '__all__', ()): getattr(mesh, name)")
    assert done.returncode == 0, done.stderr
