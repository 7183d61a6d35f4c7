"""infermesh: the small computers that you own, as one inference machine.

This module is what a sensor client imports, so it stays light: public names are resolved on first
use, and neither numpy nor onnxruntime is imported before something needs them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mesh.client.blocking import InferenceSession as InferenceSession
    from mesh.client.mesh_client import Mesh as Mesh
    from mesh.client.mesh_client import Model as Model
    from mesh.client.mesh_client import Result as Result
    from mesh.client.mesh_client import connect as connect
    from mesh.core.tensor import DType as DType
    from mesh.core.tensor import Tensor as Tensor
    from mesh.core.tensor import TensorSpec as TensorSpec
    from mesh.errors import MeshError as MeshError

__version__ = "0.1.0"

_PUBLIC = {
    "DType": "mesh.core.tensor",
    "InferenceSession": "mesh.client.blocking",
    "Mesh": "mesh.client.mesh_client",
    "MeshError": "mesh.errors",
    "Model": "mesh.client.mesh_client",
    "Result": "mesh.client.mesh_client",
    "Tensor": "mesh.core.tensor",
    "TensorSpec": "mesh.core.tensor",
    "connect": "mesh.client.mesh_client",
}

__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'mesh' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
