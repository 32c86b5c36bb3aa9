"""Modules of the harness that need claude-agent-sdk, which is installed in `.venv-harness` only."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

_SITE = (
    Path(__file__)
    .parents[2]
    .joinpath(
        ".venv-harness", "lib", f"python{sys.version_info.major}.{sys.version_info.minor}", "site-packages"
    )
)


def importing(module: str) -> Any:
    """The module, imported with the harness's packages behind our own; the test is left out where there are
    none."""
    if not (_SITE / "claude_agent_sdk").is_dir():
        pytest.skip(f"{_SITE} has no claude_agent_sdk")
    sys.path.append(str(_SITE))
    try:
        return importlib.import_module(module)
    finally:
        sys.path.remove(str(_SITE))
