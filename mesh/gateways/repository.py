"""The models that a gateway may load: uploaded ones, and those of a folder `MODEL/VERSION/model.onnx`.

Loading and unloading change what a whole mesh does, so a gateway does neither unless it was started to. The folder is
read only; versions are numbers, and the highest is taken. Used by `inference`, in threads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mesh.core.ids import NAME_PATTERN
from mesh.errors import MissingExtra, NotFound, Refused, UsageError

MODEL_FILE = "model.onnx"

MAX_MODEL_BYTES = 1 << 30
"""Of one model file in the folder; protobuf, and so ONNX, ends at twice that."""


class ModelRepository:
    """`folder` may be None: then only uploads can be loaded."""

    def __init__(self, folder: Path | None, is_open: bool) -> None:
        self._folder = folder
        self._is_open = is_open
        if folder is not None and not folder.is_dir():
            raise UsageError(f"there is no folder {folder}", hint="--repository names the folder of MODEL/1/model.onnx")

    def check_allowed(self) -> None:
        if not self._is_open:
            raise Refused(
                "this gateway neither loads nor unloads models",
                hint="start it with --allow-load, or use `mesh deploy` and `mesh undeploy`",
            )

    def names(self) -> list[str]:
        """Of the models in the folder that can be deployed under their name."""
        if self._folder is None:
            return []
        folders = (path for path in self._folder.iterdir() if NAME_PATTERN.fullmatch(path.name))
        return sorted(path.name for path in folders if _newest(path) is not None)

    def read(self, name: str, files: Mapping[str, bytes]) -> bytes:
        """The ONNX file of `name`: from `files` if any are given, else from the folder.

        Raises `UsageError` for files that are not one model, `NotFound` where the folder has no such model.
        """
        if files:
            return _uploaded(files)
        path = _newest(self._folder / name) if self._folder is not None else None
        if path is None:
            where = "no files came with the call" if self._folder is None else f"nor in {self._folder}"
            raise NotFound(
                f"there is no model {name!r} to load: {where}",
                hint=f"send the file as file:1/{MODEL_FILE}, or put it at {name}/1/{MODEL_FILE} in the folder",
            )
        if path.stat().st_size > MAX_MODEL_BYTES:
            raise UsageError(f"{path} is larger than {MAX_MODEL_BYTES >> 20} MiB")
        return _read_whole(path)


def load_files(parameters: Mapping[str, Any], read: Callable[[Any], bytes | None]) -> dict[str, bytes]:
    """The files among the parameters of a load call, by path; `read` gives the bytes of one, None where it holds none.

    Raises `UsageError` for parameters that are neither files nor a configuration, whose say (instances, batching) is
    the planner's here.
    """
    files: dict[str, bytes] = {}
    for key, value in parameters.items():
        kind, _, path = key.partition(":")
        if kind == "config":
            continue
        data = read(value) if kind == "file" else None
        if data is None:
            raise UsageError(f"unknown load parameter {key[:80]!r}", hint=f"file:1/{MODEL_FILE} with the file's bytes")
        files[path] = data
    return files


def _read_whole(path: Path) -> bytes:
    """As one self-contained file: external data is drawn in."""
    try:
        from mesh.model.read import read_model
    except ImportError:
        raise MissingExtra(
            "reading models needs the package onnx, which is not installed here",
            hint="install the extra infermesh[coordinator]",
        ) from None
    return read_model(path).data


def _uploaded(files: Mapping[str, bytes]) -> bytes:
    models = [path for path in files if _is_model_path(path)]
    if len(models) != 1 or len(files) != 1:
        raise UsageError(
            f"the upload has the files {sorted(path[:80] for path in files)[:8]}, and must be one model",
            hint=f"send one file named file:1/{MODEL_FILE}; its weights must be inside",
        )
    return files[models[0]]


def _is_model_path(path: str) -> bool:
    version, _, file = path.partition("/")
    return version.isascii() and version.isdecimal() and file == MODEL_FILE


def _newest(folder: Path) -> Path | None:
    """`MODEL/VERSION/model.onnx` with the highest version below `folder`."""
    if not folder.is_dir():
        return None
    versions = [path for path in folder.iterdir() if path.name.isascii() and path.name.isdecimal()]
    files = [path / MODEL_FILE for path in sorted(versions, key=lambda path: int(path.name), reverse=True)]
    return next((path for path in files if path.is_file()), None)
