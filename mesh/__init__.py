"""infermesh: the small computers that you own, as one inference machine.

This module is what a sensor client imports, so it stays light: public names are resolved on first
use, and neither numpy nor onnxruntime is imported before something needs them.
"""

from __future__ import annotations

__version__ = "0.1.0"
