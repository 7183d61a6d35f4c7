"""What a `MeshError` is in the protocols that gateways speak: a gRPC status, an HTTP status, and a line for people.

The mesh's own callers get errors with their codes (`mesh.wire.status`); these know only what their protocol says:
NOT_FOUND for a model, INVALID_ARGUMENT for what does not fit it, UNAVAILABLE where nothing can serve it now,
DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED for too much at once. Of an exception that nobody meant to raise they learn an id
under which the gateway's log has the rest.
"""

from __future__ import annotations

import logging
import secrets
from typing import Any, NoReturn

import grpc

from mesh import errors
from mesh.errors import MeshError
from mesh.wire.status import status_code_for

_UNAVAILABLE = (errors.NoNodes, errors.Infeasible, errors.StaleGeneration)
"""Nothing is wrong with the request; the mesh cannot serve it now."""

MAX_TOLD_CHARACTERS = 2000

_HTTP: dict[grpc.StatusCode, int] = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}

_log = logging.getLogger(__name__)


def grpc_status_of(error: MeshError) -> grpc.StatusCode:
    if isinstance(error, _UNAVAILABLE):
        return grpc.StatusCode.UNAVAILABLE
    return status_code_for(error)


def http_status_of(error: MeshError) -> int:
    return _HTTP.get(grpc_status_of(error), 500)


def told_of(error: Exception) -> MeshError:
    """`error` itself where it was raised on purpose; else it is logged here, and told by an id."""
    if isinstance(error, MeshError):
        return error
    incident = secrets.token_hex(4)
    _log.error("internal error %s", incident, exc_info=error)
    return errors.EngineError(f"internal error {incident}", hint="the gateway's log says more")


def line_of(error: MeshError) -> str:
    """For people, on one line."""
    return " ".join(str(error).split())[:MAX_TOLD_CHARACTERS]


async def abort_with(context: Any, error: Exception) -> NoReturn:
    """End the gRPC call of `context` with `error`; always raises gRPC's own `AbortError`."""
    if isinstance(error, grpc.aio.AbortError):
        raise error
    told = told_of(error)
    await context.abort(grpc_status_of(told), line_of(told))
    raise AssertionError("abort returned")
