"""Messages of the data plane to bytes and back: frames through the hand-written codec, the rest by protobuf.

Pure but for the `FrameAssembler` that each reader of frames owns. Everything that comes in is
checked here; what breaks the protocol raises `ProtocolViolation`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from google.protobuf.message import DecodeError
from google.protobuf.message import Message as ProtobufMessage

from mesh.core.frame import Frame, StreamClass
from mesh.core.ids import DeploymentName, check_name
from mesh.core.messages import (
    Acknowledge,
    CloseStream,
    Credit,
    Draining,
    EdgeAccepted,
    Heartbeat,
    Message,
    OpenEdge,
    OpenResults,
    OpenStream,
    ResultsAccepted,
    StreamAccepted,
)
from mesh.core.plan import Fence
from mesh.errors import ProtocolViolation
from mesh.v1 import stream_pb2
from mesh.wire.convert import error_from_proto, error_to_proto
from mesh.wire.frame_codec import FrameAssembler, encode_frame, is_frame

MAX_CONTROL_BYTES = 64 << 10
"""Nothing but a frame needs more; parsed protobuf can be many times its bytes."""

_STREAM_CLASSES = {
    StreamClass.LOSSLESS: stream_pb2.STREAM_CLASS_LOSSLESS,
    StreamClass.LIVE: stream_pb2.STREAM_CLASS_LIVE,
}


def encode_message(message: Message) -> Iterable[bytes]:
    """The bytes of one message; a frame may take several."""
    if isinstance(message, Frame):
        return encode_frame(message)
    return (_encode(message).SerializeToString(),)


def _encode(message: Message) -> ProtobufMessage:
    match message:
        case OpenEdge(deployment, fence, stage):
            opening = stream_pb2.OpenEdge(
                deployment=deployment, term=fence.term, generation=fence.generation, stage=stage
            )
            return stream_pb2.EdgeRequest(open_edge=opening)
        case OpenStream(stream, stream_class, ordered, window, traceparent):
            open_stream = stream_pb2.OpenStream(
                stream=stream,
                stream_class=_STREAM_CLASSES[stream_class],
                ordered=ordered,
                window=window,
                traceparent=traceparent,
            )
            return stream_pb2.EdgeRequest(open_stream=open_stream)
        case EdgeAccepted(credit_bytes):
            return stream_pb2.EdgeResponse(edge_accepted=stream_pb2.EdgeAccepted(credit_bytes=credit_bytes))
        case StreamAccepted(stream):
            return stream_pb2.EdgeResponse(stream_accepted=stream_pb2.StreamAccepted(stream=stream))
        case Credit(size_bytes):
            return stream_pb2.EdgeResponse(credit=stream_pb2.Credit(bytes=size_bytes))
        case OpenResults(deployment, fence, stream, from_sequence, window):
            results = stream_pb2.OpenResults(
                deployment=deployment,
                term=fence.term,
                generation=fence.generation,
                stream=stream,
                from_sequence=from_sequence,
                window=window,
            )
            return stream_pb2.ResultsRequest(open=results)
        case Acknowledge(sequence):
            return stream_pb2.ResultsRequest(acknowledge=stream_pb2.Acknowledge(sequence=sequence))
        case ResultsAccepted():
            return stream_pb2.ResultsResponse(accepted=stream_pb2.ResultsAccepted())
        case Draining():
            # Field 6 of both envelopes that may hold it.
            return stream_pb2.ResultsResponse(draining=stream_pb2.Draining())
        case Heartbeat(loop_lag_ms):
            # Field 5 of all four envelopes, so that any of them will do.
            return stream_pb2.EdgeRequest(heartbeat=stream_pb2.Heartbeat(loop_lag_ms=loop_lag_ms))
        case CloseStream():
            raise ProtocolViolation("a CloseStream needs to know its envelope")
        case _:
            raise ProtocolViolation(f"{type(message).__name__} cannot be sent")


def _encode_close(message: CloseStream) -> stream_pb2.CloseStream:
    error = error_to_proto(message.error) if message.error is not None else None
    return stream_pb2.CloseStream(stream=message.stream, error=error)


def encode_edge_request(message: Message) -> Iterable[bytes]:
    """Downstream on an edge."""
    if isinstance(message, CloseStream):
        return (stream_pb2.EdgeRequest(close_stream=_encode_close(message)).SerializeToString(),)
    return encode_message(message)


def encode_edge_response(message: Message) -> Iterable[bytes]:
    """Upstream on an edge."""
    if isinstance(message, CloseStream):
        return (stream_pb2.EdgeResponse(close_stream=_encode_close(message)).SerializeToString(),)
    return encode_message(message)


def encode_results_response(message: Message) -> Iterable[bytes]:
    """To a consumer."""
    if isinstance(message, CloseStream):
        return (stream_pb2.ResultsResponse(close_stream=_encode_close(message)).SerializeToString(),)
    return encode_message(message)


def _parse(data: bytes, envelope: ProtobufMessage) -> str:
    if len(data) > MAX_CONTROL_BYTES:
        raise ProtocolViolation(f"a control message of {len(data)} bytes is above the limit of {MAX_CONTROL_BYTES}")
    try:
        envelope.ParseFromString(data)
    except DecodeError as error:
        raise ProtocolViolation(f"a message on a stream is not protobuf: {error}") from None
    kind: str | None = envelope.WhichOneof("message")
    if kind is None:
        raise ProtocolViolation("an empty or unknown message on a stream", hint="the peer may run a newer version")
    return kind


def _decode_close(message: stream_pb2.CloseStream) -> CloseStream:
    error = error_from_proto(message.error) if message.HasField("error") else None
    return CloseStream(message.stream, error)


def decode_edge_request(data: bytes, assembler: FrameAssembler | None) -> Sequence[Message]:
    """What an edge's receiver reads; nothing while a chunked frame is incomplete, small frames together."""
    if is_frame(data):
        if assembler is None:
            raise ProtocolViolation("a frame came before its edge was opened")
        return assembler.feed(data)
    return (_decode_edge_request(data),)


def _decode_edge_request(data: bytes) -> Message:
    envelope = stream_pb2.EdgeRequest()
    match _parse(data, envelope):
        case "open_edge":
            edge = envelope.open_edge
            return OpenEdge(
                DeploymentName(check_name(edge.deployment, "deployment")), Fence(edge.term, edge.generation), edge.stage
            )
        case "open_stream":
            opening = envelope.open_stream
            try:
                stream_class = StreamClass(opening.stream_class)
            except ValueError:
                raise ProtocolViolation(f"unknown stream class {opening.stream_class}") from None
            return OpenStream(opening.stream, stream_class, opening.ordered, opening.window, opening.traceparent)
        case "close_stream":
            return _decode_close(envelope.close_stream)
        case "heartbeat":
            return Heartbeat(envelope.heartbeat.loop_lag_ms)
        case _:
            raise ProtocolViolation("a message with a frame begins with something else")


def decode_edge_response(data: bytes) -> Message:
    """What an edge's sender reads."""
    envelope = stream_pb2.EdgeResponse()
    match _parse(data, envelope):
        case "edge_accepted":
            return EdgeAccepted(envelope.edge_accepted.credit_bytes)
        case "stream_accepted":
            return StreamAccepted(envelope.stream_accepted.stream)
        case "close_stream":
            return _decode_close(envelope.close_stream)
        case "credit":
            return Credit(envelope.credit.bytes)
        case "draining":
            return Draining()
        case _:
            return Heartbeat(envelope.heartbeat.loop_lag_ms)


def decode_results_request(data: bytes) -> Message:
    """What the tail reads from a consumer."""
    envelope = stream_pb2.ResultsRequest()
    match _parse(data, envelope):
        case "open":
            opening = envelope.open
            return OpenResults(
                DeploymentName(check_name(opening.deployment, "deployment")),
                Fence(opening.term, opening.generation),
                opening.stream,
                opening.from_sequence,
                opening.window,
            )
        case "acknowledge":
            return Acknowledge(envelope.acknowledge.sequence)
        case _:
            return Heartbeat(envelope.heartbeat.loop_lag_ms)


def decode_results_response(data: bytes, assembler: FrameAssembler | None) -> Sequence[Message]:
    """What a consumer reads; nothing while a chunked frame is incomplete, small frames together."""
    if is_frame(data):
        if assembler is None:
            raise ProtocolViolation("an answer came before its results link was opened")
        return assembler.feed(data)
    return (_decode_results_response(data),)


def _decode_results_response(data: bytes) -> Message:
    envelope = stream_pb2.ResultsResponse()
    match _parse(data, envelope):
        case "accepted":
            return ResultsAccepted()
        case "draining":
            return Draining()
        case "close_stream":
            return _decode_close(envelope.close_stream)
        case "heartbeat":
            return Heartbeat(envelope.heartbeat.loop_lag_ms)
        case _:
            raise ProtocolViolation("a message with a frame begins with something else")
