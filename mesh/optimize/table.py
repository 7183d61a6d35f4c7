"""All passes by name. A new one is a file beside this and a line here; the conformance suite finds it by itself."""

from __future__ import annotations

from collections.abc import Callable

from mesh.optimize.contract import Pass
from mesh.optimize.dynamic_int8 import DynamicInt8
from mesh.optimize.half import Half
from mesh.optimize.preprocess import Preprocess
from mesh.optimize.pruning import Pruned, PrunedInt8
from mesh.optimize.safe_int8 import SafeInt8
from mesh.optimize.static_int8 import StaticInt8

PASSES: dict[str, Callable[[], Pass]] = {
    "preprocess": Preprocess,
    "int8": StaticInt8,
    "int8-safe": SafeInt8,
    "int8-dynamic": DynamicInt8,
    "fp16": Half,
    "pruned": Pruned,
    "pruned-int8": PrunedInt8,
}

PREPARATION = "preprocess"
"""Its result is no variant: the other passes begin with it."""

VARIANTS = tuple(name for name in PASSES if name != PREPARATION)
