"""Engines that a test environment may be without; the one that scripts/test makes has them."""

from __future__ import annotations

import importlib.util

import pytest


def require_openvino() -> None:
    """Skip loudly where OpenVINO is not installed. Nothing is imported here: that is the engine's affair."""
    if importlib.util.find_spec("openvino") is None:
        pytest.skip("OpenVINO is not installed (the extra infermesh[openvino]): its engine is NOT tested")
