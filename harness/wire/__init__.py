"""Wire models of the agent socket: the only module of the harness that the host imports.

Everything the harness says is told by the container and therefore a claim; everything the host says is the
approved truth. Times are RFC 3339 strings, durations seconds. Unknown keys are refused on both sides.
"""

from harness.wire.models import *  # noqa: F403 - this package is its models
