"""The pass port: what makes one variant of a model, and says by itself where it does not apply.

A pass is a value without state. `optimizer` calls `requires`, `apply` and `ensures` in this order; `table` lists
all passes, and one conformance suite judges each. A pass never decides whether its result is good enough: that
is measured (`verdict`, `timing`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import onnx

from mesh.arrays import Array

Feeds = Mapping[str, Array]
"""One run of the model: input name to array, shaped and typed as the model wants it."""


class PassFailed(Exception):
    """A pass could not do its work on a model that it had accepted.

    Never leaves this package: the variant is refused with these words, and the others go on.
    """


class Ranges(Protocol):
    """Where a static pass gets the smallest and largest value of each tensor from."""

    def of(self, model: onnx.ModelProto) -> Any:
        """Ranges of every float tensor of `model`, as onnxruntime's quantiser wants them; measured once per model."""
        ...


@dataclass(frozen=True, slots=True)
class Material:
    """What a pass may use besides the model."""

    samples: Sequence[Feeds]
    """The half that calibrates; never the half that judges."""
    ranges: Ranges
    keep_float: frozenset[str] = field(default=frozenset())
    """Names of the parts (as `Pass.order` gives them) that the pass leaves as they are."""


class Pass(Protocol):
    @property
    def name(self) -> str:
        """Of the variant that it makes; also its file's name."""
        ...

    def requires(self, model: onnx.ModelProto) -> str:
        """Why it does not apply to `model`; "" where it does."""
        ...

    def apply(self, model: onnx.ModelProto, material: Material) -> onnx.ModelProto:
        """A new model; `model` is not changed. Raises `PassFailed`."""
        ...

    def ensures(self, before: onnx.ModelProto, after: onnx.ModelProto) -> str:
        """What is wrong with `after`; "" where the pass did what it promises."""
        ...

    def order(self, model: onnx.ModelProto, samples: Sequence[Feeds]) -> list[str]:
        """Names of parts that `keep_float` may hold: operators or steps of them, the first to be left alone first.

        Raises `PassFailed`.
        """
        ...
