"""The parts of the approved spec that matter inside. The host has validated it; what is unknown here is
ignored."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from harness.config import Config
from harness.policy.engine import Rules


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class _Bash(_Part):
    allow: list[str] = []
    deny: list[str] = []


class _Tools(_Part):
    allow: list[str] = []


class McpServer(_Part):
    """A further MCP server, started by the CLI as the agent's user; `allow` names its tools one by one."""

    command: str
    args: list[str] = []
    env: dict[str, str] = {}
    allow: list[str] = []


class _Compact(_Part):
    atTokens: float = 0.75  # noqa: N815 - the option's name


class _Notes(_Part):
    maxBytes: int = 32768  # noqa: N815 - the option's name


class AgentSpec(_Part):
    """Shell patterns, built-in tools, further MCP servers, the share of the window at which to compact, and
    how long the notes may grow."""

    bash: _Bash = _Bash()
    tools: _Tools = _Tools()
    mcpServers: dict[str, McpServer] = {}  # noqa: N815 - the option's name
    compact: _Compact = _Compact()
    notes: _Notes = _Notes()
    model: str = ""
    models: list[str] = []

    def rules(self, role: str, config: Config) -> Rules:
        """What the policy decides by."""
        tree = [config.state, config.config, *([config.agents] if role == "manager" else [])]
        return Rules(
            allow=tuple(self.bash.allow),
            deny=tuple(self.bash.deny),
            tools=tuple(self.tools.allow),
            roots=tuple(str(root) for root in (*tree, config.home)),
            work_tree=tuple(str(root) for root in tree),
            values={"HOME": str(config.home), "TMPDIR": "/tmp"},  # noqa: S108 - the container's own tmpfs
            mcp_tools=frozenset(
                f"mcp__{key}__{tool}"
                for key, one in self.mcpServers.items()
                if "__" not in f"{key}_"  # else it could be the name of another server's tool
                for tool in one.allow
            ),
        )

    def cheap_model(self, active: str) -> str:
        """The model for work beside the conversation: a haiku if the spec names one, else that in use."""
        return next((name for name in (self.model, *self.models) if "haiku" in name), active)

    def built_in_tools(self) -> tuple[str, ...]:
        """What the CLI offers to the model: the shell only if some command is allowed."""
        return (*(("Bash",) if self.bash.allow else ()), *self.tools.allow)
