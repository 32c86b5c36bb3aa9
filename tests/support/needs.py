"""What some tests cannot do without. By hand they are left out and named; under `make test`, which runs as
root with everything installed, a test that is left out for this is a failure (`report.py`)."""

from __future__ import annotations

import os

import pytest

# Owners, sockets, namespaces and file systems of other users: only root may make them.
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
