"""What a check says. Pure; `mesh.doctor.checks` makes them, `mesh doctor` shows them."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass


class Severity(enum.StrEnum):
    OK = "ok"
    NOTE = "note"
    """Nothing is wrong, but it explains what a person may wonder about."""
    WARNING = "warning"
    """Works, but worse than it could; or may be wrong, and cannot be told from here."""
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Finding:
    check: str
    """Name of the check, from the table in `mesh.doctor.checks`."""
    severity: Severity
    subject: str
    """What it is about: an interface, a port, a node."""
    message: str
    fix: str = ""
    """What to do; every warning and every broken thing has one."""


def is_healthy(findings: Iterable[Finding]) -> bool:
    return all(finding.severity is not Severity.BROKEN for finding in findings)
