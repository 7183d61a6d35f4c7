"""What a client's stream has been through, in numbers for tests, reports and metrics.

Mutable; owned by one `mesh.control.client_stream.ClientStream`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from mesh.core.frame import Outcome


@dataclass(slots=True)
class StreamCounters:
    """What the stream has been through. `outcomes` and the unanswered frames add up to `offered`."""

    offered: int = 0
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    duplicates: int = 0
    """Answers to frames that another path had answered before."""
    replays: int = 0
    """Frames that were sent again after the path that they were on was lost."""
    losses: int = 0
    """Paths that were lost while frames could be on them."""
    recoveries: int = 0
    """Paths that were opened while there was none."""
    replacements: int = 0
    """Paths that were opened before the one that they replace was gone."""
    longest_gap_s: float = 0.0
    """Between two answers of the mesh, or an offer and the first, while frames were unanswered."""
    _heard_at: float = 0.0

    def busy(self, now: float) -> None:
        """A frame was offered while none was unanswered: from now on the mesh owes an answer."""
        self._heard_at = now

    def heard(self, now: float) -> None:
        """The mesh answered, or never will."""
        self.longest_gap_s = max(self.longest_gap_s, now - self._heard_at)
        self._heard_at = now
