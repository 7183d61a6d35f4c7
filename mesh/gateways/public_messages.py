"""The messages of the Open Inference Protocol, made at run time in a descriptor pool of their own.

Every package that speaks this protocol registers the same names, and protobuf's default pool takes each name once: with
generated modules a process could import either infermesh or another such package. So the descriptors are a file
(`scripts/generate_protos` makes it of `protos/public`), and the classes are made here.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError

from mesh.errors import UsageError

SERVICE = "inference.GRPCInferenceService"


def make_pool() -> DescriptorPool:
    """A pool of its own with the protocol's files."""
    pool = descriptor_pool.DescriptorPool()
    described = descriptor_pb2.FileDescriptorSet.FromString(
        files("mesh.gateways").joinpath("public_protocols.binpb").read_bytes()
    )
    for file in described.file:
        pool.Add(file)
    return pool


POOL = make_pool()


def message_class(name: str) -> Any:
    """The class of message `name` of the protocol ("ModelInferRequest")."""
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(f"inference.{name}"))


def parse_message(kind: Any, data: bytes) -> Any:
    """A message of class `kind`; raises `UsageError` for bytes that are none."""
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise UsageError(f"the message is no {kind.DESCRIPTOR.name}: {error}") from None


def method_types() -> dict[str, tuple[Any, Any]]:
    """Request and response class of each method of the service, by the method's name."""
    service: Any = POOL.FindServiceByName(SERVICE)
    return {
        method.name: (
            message_factory.GetMessageClass(method.input_type),
            message_factory.GetMessageClass(method.output_type),
        )
        for method in service.methods
    }
