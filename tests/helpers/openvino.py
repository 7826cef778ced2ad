"""Imports OpenVINO for tests."""

import sys
from types import ModuleType

import pytest


def import_openvino() -> ModuleType:
    """OpenVINO without its telemetry; skips the test where it is not installed."""
    with pytest.MonkeyPatch.context() as patch:
        # Telemetry would fork a process at the import, which is unsafe with JAX's threads.
        patch.setitem(sys.modules, "openvino_telemetry", None)
        return pytest.importorskip("openvino", reason="pip install -e '.[openvino]'")
