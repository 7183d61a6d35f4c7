"""One generation of a deployment: its key, and the states in which a node may have it.

Apart from the machine in `mesh.control.deployments`, because commands that only look need no more than this.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from mesh.core.ids import DeploymentName
from mesh.core.plan import Deployment, Fence


class DeploymentState(enum.Enum):
    PREPARING = "preparing"
    """Accepted and fenced; its content is being looked for."""
    LOADING = "loading"
    """The engine loads the segment."""
    READY = "ready"
    """Could run, takes no streams yet."""
    ACTIVE = "active"
    """Takes streams."""
    DRAINING = "draining"
    """Takes no new streams; finishes what is in flight."""
    GONE = "gone"
    """Unloaded and forgotten; only its fence remains."""
    FAILED = "failed"
    """Could not be loaded, or its engine gave up."""


@dataclass(frozen=True, slots=True)
class Key:
    """One generation of one name."""

    name: DeploymentName
    fence: Fence

    def __str__(self) -> str:
        return f"{self.name} {self.fence}"


def key_of(deployment: Deployment) -> Key:
    return Key(deployment.name, deployment.fence)
