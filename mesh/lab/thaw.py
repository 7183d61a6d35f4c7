"""`python -m mesh.lab.thaw LAB DEVICE`: ends a freeze when its time has come. Started by `mesh lab fault`."""

from __future__ import annotations

import sys

from mesh.lab.operating import thaw_when_due

if __name__ == "__main__":
    thaw_when_due(*sys.argv[1:3])
