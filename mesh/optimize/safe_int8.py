"""The pass for fleets of unknown or mixed processors: as `static_int8`, with weights of 7 bits.

On x86 without VNNI, 8-bit products are added in pairs in 16 bits and saturate; with 7-bit weights they cannot, so
the answers are the same on every processor. It costs about 2 dB and no speed (measured).
"""

from __future__ import annotations

from mesh.optimize.static_int8 import StaticInt8


class SafeInt8(StaticInt8):
    name = "int8-safe"
    seven_bit = True
