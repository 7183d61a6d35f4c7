"""The wire: protobuf messages, the frame codec, gRPC channels and servers.

Below the gateways, `grpc` is imported here and nowhere else.
"""

import os

# gRPC's core prints its own notes about connections to standard error, over the head of the program that
# uses it; it reads this once, when it is loaded. Whoever wants them sets another level.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
