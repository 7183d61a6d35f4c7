"""How the options that several commands share become a connection to the mesh."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from mesh.errors import UsageError
from nodes.output import say

if TYPE_CHECKING:
    from mesh.client.mesh_client import Mesh


def open_mesh(
    coordinator: str | None,
    peers: list[str] | None,
    interfaces: list[str] | None,
    mdns: bool,
    costs: Path | None = None,
) -> Mesh:
    """A connection as the shared options describe it; `costs` for commands that may plan by themselves."""
    from mesh.client.mesh_client import Mesh
    from mesh.runtime.locate import ENVIRONMENT

    if not mdns and not peers and not coordinator and not os.environ.get("MESH_MQTT"):
        raise UsageError("without mDNS there must be a --peer, a --coordinator or a broker (MESH_MQTT) to ask")
    if coordinator == os.environ.get(ENVIRONMENT):
        coordinator = None  # the mesh reads it itself, and says so where it does not answer
    return Mesh(
        peers=peers or (), interfaces=interfaces or (), mdns=mdns, coordinator=coordinator, costs=costs, warn=say
    )
