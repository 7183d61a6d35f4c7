"""What is told of a deployment whose only node is away."""

from __future__ import annotations

import signal
from pathlib import Path

from tests.end_to_end.commands import local_fleet


def test_who_does_not_answer_is_named(tmp_path: Path) -> None:
    with local_fleet(tmp_path, 2) as fleet:
        (holder,) = fleet.deploy("alone", 1)
        holder.send(signal.SIGSTOP)
        try:
            ended = fleet.run("status", "alone", "--json")
        finally:
            holder.send(signal.SIGCONT)
        ended.fails("deployment-not-found", 3)
        assert holder.address in ended.document()["error"]["message"], ended.told()
