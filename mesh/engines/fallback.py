"""Two engines as one: what the first cannot load, the second does, and the session says why.

For a first engine that does not take every model (it cannot compile an operator, would change a type, or its process
ends while it compiles). Both run in this process, or both in children: a child that dies of a model is then replaced
by one of the other engine. Where neither takes the model, the second one's reason is what is raised. Stateless.
"""

from __future__ import annotations

from pathlib import Path

from mesh.engines.contract import Engine, LoadOptions, Session
from mesh.errors import LoadFailed


class FallbackEngine:
    """Implements `mesh.engines.contract.Engine`, under the name of the first."""

    def __init__(self, first: Engine, second: Engine) -> None:
        assert first.is_remote == second.is_remote, "whoever runs a session asks the engine which kind it is"  # noqa: S101
        self.name = first.name
        self.is_remote = first.is_remote
        self._first = first
        self._second = second

    def load(self, model: bytes | Path, options: LoadOptions) -> Session:
        """Raises `LoadFailed` where neither can, `MissingExtra` where either is not installed."""
        try:
            return self._first.load(model, options)
        except LoadFailed as error:
            reason = error
        try:
            session = self._second.load(model, options)
        except LoadFailed as error:
            raise error from reason
        session.fallback = f"{self._second.name} computes it instead of {self._first.name}: {reason.message}"
        return session
