"""Channel and server options, each with its reason. Figures marked "measured" come from loopback experiments."""

from __future__ import annotations

from mesh.control.timing import KEEPALIVE_INTERVAL_S, KEEPALIVE_TIMEOUT_S

MAX_MESSAGE_BYTES = 16 << 20
"""The largest single message that a peer may send: frames travel in chunks of 1 MiB, control messages are
smaller; the default of 4 MiB would do but leaves no room for other chunk sizes."""

MAX_CONCURRENT_CALLS = 1024
"""Per connection; a client uses two streams per stream of frames and a few control calls."""

MAX_METADATA_BYTES = 32 << 10

GrpcOption = tuple[str, int | str]

_SHARED: list[GrpcOption] = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    # Without all three a black-holed peer is noticed after minutes and a frozen one after 60 s (measured).
    ("grpc.keepalive_time_ms", int(KEEPALIVE_INTERVAL_S * 1000)),
    ("grpc.keepalive_timeout_ms", int(KEEPALIVE_TIMEOUT_S * 1000)),
    ("grpc.http2.ping_timeout_ms", int(KEEPALIVE_TIMEOUT_S * 1000)),
    ("grpc.http2.max_pings_without_data", 0),
]

CHANNEL_OPTIONS: list[GrpcOption] = [
    *_SHARED,
    # Otherwise two channels to one target share a connection, and bulk data delays control.
    ("grpc.use_local_subchannel_pool", 1),
    # A frozen peer's kernel still accepts connections; by itself gRPC waits 20 s for the first word of one.
    ("grpc.min_reconnect_backoff_ms", int(KEEPALIVE_TIMEOUT_S * 1000)),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.enable_http_proxy", 0),
]

SERVER_OPTIONS: list[GrpcOption] = [
    *_SHARED,
    # With reuse a second daemon on a busy port binds silently and takes half of the calls.
    ("grpc.so_reuseport", 0),
    ("grpc.max_concurrent_streams", MAX_CONCURRENT_CALLS),
    # Permit what CHANNEL_OPTIONS do; the default answers GOAWAY too_many_pings.
    ("grpc.http2.min_ping_interval_without_data_ms", int(KEEPALIVE_INTERVAL_S * 500)),
    ("grpc.http2.max_ping_strikes", 0),
]
