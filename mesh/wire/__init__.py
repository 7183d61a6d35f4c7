"""The wire: protobuf messages, the frame codec, gRPC channels and servers.

Below the gateways, `grpc` is imported here and nowhere else.
"""
