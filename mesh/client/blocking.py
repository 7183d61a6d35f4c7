"""The blocking twin, shaped like `onnxruntime.InferenceSession`: change one line and the mesh computes.

    session = mesh.InferenceSession("model.onnx")
    outputs = session.run(None, {"image": image})

An event loop on a thread of its own does the work; calls from several threads may overlap.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from mesh.client.mesh_client import Mesh, Model
from mesh.core.tensor import TensorSpec
from mesh.errors import MeshError, TensorMismatch

Value = TypeVar("Value")

STOP_TIMEOUT_S = 10.0
"""For the mesh to take leave of its peers when a session is closed."""


class InferenceSession:
    """A model on the mesh, used from ordinary code.

    `model`: a path to an ONNX file, which is deployed (and removed again by `close`), or the name of a
    deployment. Keyword arguments are those of `mesh.connect`. Raises what deploying raises.
    """

    def __init__(self, model: str | Path, *, stages: int | None = None, **connection: Any) -> None:
        self._connection = connection
        self._started: concurrent.futures.Future[Model] = concurrent.futures.Future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(str(model), stages)), name="mesh-session", daemon=True
        )
        self._thread.start()
        try:
            self._model = self._started.result()
        except BaseException:
            self._thread.join(STOP_TIMEOUT_S)
            raise

    async def _serve(self, model: str, stages: int | None) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        try:
            async with Mesh(**self._connection) as mesh:
                is_file = Path(model).suffix == ".onnx" or "/" in model
                deployed = await mesh.deploy(model, stages=stages) if is_file else await mesh.model(model)
                self._started.set_result(deployed)
                await self._stop.wait()
                if is_file:
                    await mesh.undeploy(deployed.name)
        except MeshError as error:
            if not self._started.done():
                self._started.set_exception(error)

    def _call(self, work: Coroutine[Any, Any, Value]) -> Value:
        if self._loop is None or not self._thread.is_alive():
            work.close()
            raise MeshError("the session is closed")
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def get_inputs(self) -> tuple[TensorSpec, ...]:
        return self._model.inputs

    def get_outputs(self) -> tuple[TensorSpec, ...]:
        return self._model.outputs

    def run(self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any]) -> list[Any]:
        """Outputs in the order of `output_names`, all in model order where None. Raises as `Model.run` does."""
        names = list(output_names) if output_names else [spec.name for spec in self._model.outputs]
        known = [spec.name for spec in self._model.outputs]
        unknown = [name for name in names if name not in known]
        if unknown:
            raise TensorMismatch(f"unknown outputs {unknown}; the model's outputs are {known}")
        made = self._call(self._model.run(input_feed))
        return [made[name] for name in names]

    def close(self) -> None:
        """Remove what this session deployed, and hang up. A second call does nothing."""
        if self._loop is not None and self._stop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(STOP_TIMEOUT_S)

    def __enter__(self) -> InferenceSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
