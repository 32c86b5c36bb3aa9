"""The tools of the hive as the model sees them (MCP server `hyperhive`), each a thin call of the link.

They need neither the SDK nor the CLI: `harness.session` hands them to the in-process MCP server. What the
host refuses is passed on in its own words.
"""

from harness.tools.agent import agent_tools
from harness.tools.manager import manager_tools
from harness.tools.tool import Status, Tool, ToolContext

__all__ = ["Status", "Tool", "ToolContext", "agent_tools", "manager_tools"]
