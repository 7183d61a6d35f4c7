"""Errors across gRPC: a `MeshError` becomes a status with the error attached, and itself again at the caller.

Servers wrap each handler in `answer_errors` (or call `abort`); clients wrap each call in
`translate_rpc_errors` (or call `from_rpc_error`). The error travels as a serialised `mesh.v1.Error`
in the trailing metadata `mesh-error-bin`; where it is missing (the peer died, or is no mesh node),
the status code decides. Of an exception that nobody meant to raise, a caller learns only an id under
which the local log has the rest.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any, NoReturn

import grpc

from mesh import errors
from mesh.errors import MeshError
from mesh.v1 import tensor_pb2
from mesh.wire.convert_plan import error_from_proto
from mesh.wire.door_checks import parse_message
from mesh.wire.protobuf_bytes import cut_text

ERROR_METADATA = "mesh-error-bin"

MAX_METADATA_MESSAGE_BYTES = 2048
MAX_METADATA_HINT_BYTES = 1024
MAX_DETAILS_BYTES = 512
"""Together below gRPC's 8 KiB for all metadata, also when encoded in base64 and percent signs."""

MAX_ERROR_MESSAGE_BYTES = 8192
"""Of a serialised error that came in."""

_STATUS_CODES: dict[type[MeshError], grpc.StatusCode] = {
    MeshError: grpc.StatusCode.UNKNOWN,
    errors.UsageError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.MissingExtra: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ModelError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.TensorMismatch: grpc.StatusCode.INVALID_ARGUMENT,
    errors.VerificationFailed: grpc.StatusCode.FAILED_PRECONDITION,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.Timeout: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.Infeasible: grpc.StatusCode.FAILED_PRECONDITION,
    errors.NodeLost: grpc.StatusCode.UNAVAILABLE,
    errors.Refused: grpc.StatusCode.FAILED_PRECONDITION,
    errors.StaleGeneration: grpc.StatusCode.ABORTED,
    errors.ProtocolViolation: grpc.StatusCode.INVALID_ARGUMENT,
    errors.Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.StorageError: grpc.StatusCode.INTERNAL,
    errors.StorageFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.ListenError: grpc.StatusCode.UNAVAILABLE,
    errors.EngineError: grpc.StatusCode.INTERNAL,
    errors.EngineQuarantined: grpc.StatusCode.UNAVAILABLE,
}
"""Per class, or the nearest one above it. For callers of other kinds; mesh callers read the metadata."""

_ERRORS: dict[grpc.StatusCode, type[MeshError]] = {
    grpc.StatusCode.UNAVAILABLE: errors.NodeLost,
    grpc.StatusCode.CANCELLED: errors.NodeLost,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.Timeout,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.Overloaded,
    grpc.StatusCode.NOT_FOUND: errors.NotFound,
    grpc.StatusCode.UNIMPLEMENTED: errors.Refused,
    grpc.StatusCode.INVALID_ARGUMENT: errors.Refused,
    grpc.StatusCode.OUT_OF_RANGE: errors.Refused,
    grpc.StatusCode.FAILED_PRECONDITION: errors.Refused,
    grpc.StatusCode.ALREADY_EXISTS: errors.Refused,
    grpc.StatusCode.ABORTED: errors.Refused,
    grpc.StatusCode.PERMISSION_DENIED: errors.Refused,
    grpc.StatusCode.UNAUTHENTICATED: errors.Refused,
}
_HINTS: dict[grpc.StatusCode, str] = {
    grpc.StatusCode.UNAVAILABLE: "check that it runs and can be reached",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "try later, or send less at once",
    grpc.StatusCode.UNIMPLEMENTED: "it may run another version of infermesh: compare `mesh --version` on both",
}
_SAYINGS: dict[grpc.StatusCode, str] = {
    grpc.StatusCode.UNAVAILABLE: "cannot be reached",
    grpc.StatusCode.CANCELLED: "gave up the call",
    grpc.StatusCode.DEADLINE_EXCEEDED: "did not answer in time",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "is overloaded",
    grpc.StatusCode.UNIMPLEMENTED: "does not know this call",
}

_log = logging.getLogger(__name__)


def status_code_for(error: MeshError) -> grpc.StatusCode:
    return next(_STATUS_CODES[kind] for kind in type(error).__mro__ if kind in _STATUS_CODES)


async def abort(context: Any, error: Exception) -> NoReturn:
    """End the call of `context` (a `grpc.aio.ServicerContext`) with `error`; always raises gRPC's own `AbortError`.

    An error that is not a `MeshError` is logged here and answered as an internal one with an id.
    """
    if isinstance(error, MeshError):
        told, code = error, status_code_for(error)
    else:
        import secrets

        incident = secrets.token_hex(4)
        _log.error("internal error %s", incident, exc_info=error)
        told, code = MeshError(f"internal error {incident}", hint="its log says more"), grpc.StatusCode.INTERNAL
    await context.abort(code, _one_line(str(told)), trailing_metadata=((ERROR_METADATA, _serialise(told)),))
    raise AssertionError("abort returned")


@contextlib.asynccontextmanager
async def answer_errors(context: Any) -> AsyncIterator[None]:
    """Around the body of a handler: whatever it raises ends the call in an orderly way."""
    try:
        yield
    except grpc.aio.AbortError:
        raise
    except Exception as error:
        await abort(context, error)


def from_rpc_error(error: grpc.aio.AioRpcError, peer: str) -> MeshError:
    """What `error` means. `peer` names the other side for people: a name, an address, or both."""
    for key, value in error.trailing_metadata() or ():
        if key == ERROR_METADATA and isinstance(value, bytes):
            with contextlib.suppress(MeshError):  # broken metadata says less than the status code does
                return error_from_proto(parse_message(tensor_pb2.Error, value, MAX_ERROR_MESSAGE_BYTES))
    code = error.code()
    saying = _SAYINGS.get(code, f"answered {code.name}")
    details = _one_line(error.details() or "")
    message = f"{peer} {saying}: {details}" if details else f"{peer} {saying}"
    return _ERRORS.get(code, MeshError)(message, hint=_HINTS.get(code, ""))


@contextlib.contextmanager
def translate_rpc_errors(peer: str) -> Iterator[None]:
    """Around calls to `peer`: raises the `MeshError` that a gRPC error means."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error, peer) from error


def _serialise(error: MeshError) -> bytes:
    return tensor_pb2.Error(
        code=error.code,
        message=cut_text(error.message, MAX_METADATA_MESSAGE_BYTES).decode(),
        hint=cut_text(error.hint, MAX_METADATA_HINT_BYTES).decode(),
    ).SerializeToString()


def _one_line(text: str) -> str:
    return " ".join(cut_text(text, MAX_DETAILS_BYTES).decode().split())
