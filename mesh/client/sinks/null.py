"""`null:`: counts the answers and keeps nothing; for measuring and for streams whose answers go elsewhere."""

from __future__ import annotations

from collections import Counter

from mesh.client.sinks.contract import Sink, SinkRecord, SinkRequest, check_record
from mesh.core.frame import Outcome
from mesh.core.tensor import TensorSpec
from mesh.errors import UsageError

OPTIONS: tuple[str, ...] = ()
HELP = "null:\n    counts the answers and keeps nothing"


class NullSink:
    """`counts` holds the number of records by outcome."""

    def __init__(self, outputs: tuple[TensorSpec, ...]) -> None:
        self._outputs = outputs
        self.counts: Counter[Outcome] = Counter()

    def write(self, record: SinkRecord) -> None:
        check_record(record, self._outputs)
        self.counts[record.outcome] += 1

    def close(self) -> None:
        """Nothing to finish."""

    def discard(self) -> None:
        """Nothing to remove."""


def open_null(request: SinkRequest) -> Sink:
    """A `NullSink`; raises `UsageError` for a path."""
    if request.url.path:
        raise UsageError(f"{request.url.text!r}: null takes no path", hint="write null:")
    return NullSink(request.outputs)
