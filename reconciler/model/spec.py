"""The agent's spec: the validated settings of `agent.nix` (`hyperhive.*`), as pydantic models.

The JSON Schema of `Spec` is what `hive schema` prints; Nix option types say the same a second time by design.
Field names are the option names (camelCase), because this is the JSON that Nix evaluates to.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from harness.policy.patterns import problem

MODEL_PATTERN = r"^[a-z][a-z0-9.:-]{0,63}(\[1m\])?$"
SIZE_PATTERN = r"^[1-9][0-9]{0,9}[KMGT]$"
RECIPIENT_PATTERN = r"^([a-z][a-z0-9-]{0,30}|\*)$"
ALIASES = ("haiku", "sonnet", "opus", "fable")

ModelName = Annotated[str, Field(pattern=MODEL_PATTERN)]
Pattern = Annotated[str, Field(min_length=1, max_length=500)]
Recipient = Annotated[str, Field(pattern=RECIPIENT_PATTERN)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class BashPolicy(_Part):
    """Patterns in Claude Code's `Bash(...)` grammar; an empty `allow` means no shell."""

    allow: list[Pattern] = Field(
        default=[],
        max_length=200,
        description="Shell commands that may run, as Claude Code patterns; empty: no shell.",
    )
    deny: list[Pattern] = Field(
        default=[],
        max_length=200,
        description="Shell commands that may not run although a pattern allows them.",
    )

    @field_validator("allow", "deny")
    @classmethod
    def _can_match(cls, patterns: list[str]) -> list[str]:
        for pattern in patterns:
            if why := problem(pattern):
                raise ValueError(f"the pattern {pattern!r} can never match: {why}")
        return patterns


class ToolsPolicy(_Part):
    """Built-in tools offered to the model, and server-side tools and betas that the gateway lets pass."""

    allow: list[Literal["Read", "Edit", "Write", "Glob", "Grep", "NotebookEdit"]] = Field(
        default=["Read", "Edit", "Write"], description="Built-in tools offered to the model."
    )
    server: list[Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,80}$")]] = Field(
        default=[], description="Server-side tools and betas that the gateway lets pass."
    )


class UidMap(_Part):
    """First host uid of the agent's range of 65536; null: assigned by the host when the agent is created."""

    base: Annotated[int, Field(ge=65536, multiple_of=65536, le=4294836224)] | None = None


class Network(_Part):
    """Host names the egress proxy lets through. Not supported yet: anything but the empty list is refused."""

    allow: Annotated[list[str], Field(max_length=0)] = []


class SendPolicy(_Part):
    """Whom the agent may send to: agent names, `manager`, `operator`, `*`."""

    allow: list[Recipient] = ["manager", "operator"]


class Budget(_Part):
    """Limits that the gateway holds; null: no limit of the agent's own."""

    usdPerDay: Annotated[float, Field(gt=0, le=100_000)] | None = Field(
        default=None, description="Dollars a day of the host's local time; null: no limit of the agent's own."
    )
    tokensPerTurn: Annotated[int, Field(gt=0, le=1_000_000_000)] | None = Field(
        default=None, description="Tokens a turn: input, output and cache writes; null: no limit."
    )


class McpServer(_Part):
    """An extra MCP server started inside the container; `allow` names its tools one by one."""

    command: Annotated[str, Field(min_length=1, max_length=4096)]
    args: list[str] = []
    env: dict[str, str] = {}
    allow: list[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]] = []


class Limits(_Part):
    """Bounds of the container: bytes with a suffix, CPU in percent of one core, number of tasks."""

    memoryMax: str = Field(default="4G", pattern=SIZE_PATTERN, description="Memory of the container.")
    cpuQuota: str = Field(
        default="200%",
        pattern=r"^[1-9][0-9]{0,4}%$",
        description="Processor time of the container, in percent of one core.",
    )
    tasksMax: int = Field(default=512, ge=16, le=65536, description="Processes and threads of the container.")
    diskMax: str = Field(
        default="10G", pattern=SIZE_PATTERN, description="Size of what the agent may write to disk."
    )


class Compact(_Part):
    """Context in use at which the harness compacts: a fraction of the window."""

    atTokens: Annotated[float, Field(gt=0.1, lt=1)] = 0.75


class Notes(_Part):
    """Size at which `/state/notes.md` is rewritten, in bytes."""

    maxBytes: Annotated[int, Field(ge=1024, le=1_048_576)] = 32768


class NixAccess(_Part):
    """Whether the container may speak to a Nix daemon, as an untrusted user."""

    enable: bool = False


class Spec(_Part):
    """All settings of one agent; every default here is the default of the option of the same name."""

    model: ModelName = Field(
        default="haiku", description="The model: haiku, sonnet, opus, fable, or the id of one."
    )
    models: list[ModelName] = Field(
        default=[], description="Models the operator may switch to; empty: any of the host."
    )
    role: Literal["agent", "manager"] = Field(
        default="agent", description="The manager may propose for all agents; at most one in a hive."
    )
    bash: BashPolicy = BashPolicy()
    tools: ToolsPolicy = ToolsPolicy()
    uidMap: UidMap = UidMap()
    network: Network = Network()
    send: SendPolicy = SendPolicy()
    budget: Budget = Budget()
    # no `__`, and no `_` at the end: `mcp__KEY__TOOL` must mean one tool of one server
    mcpServers: dict[Annotated[str, Field(pattern=r"^[a-z](_?[a-z0-9-]){0,30}$")], McpServer] = Field(
        default={},
        description="Extra MCP servers inside the container: { command, args, env, allow } by name.",
    )
    limits: Limits = Limits()
    prompt: Annotated[str, Field(pattern=r"^[A-Za-z0-9._/-]{1,200}$")] | None = Field(
        default=None,
        description="A text file of the repository that is added to the system prompt, 64 KiB at most.",
    )
    compact: Compact = Compact()
    notes: Notes = Notes()
    nix: NixAccess = NixAccess()

    @field_validator("mcpServers")
    @classmethod
    def _own_key(cls, servers: dict[str, McpServer]) -> dict[str, McpServer]:
        if "hyperhive" in servers:
            raise ValueError("the key 'hyperhive' is the hive's own server; choose another")
        return servers

    @field_validator("prompt")
    @classmethod
    def _inside(cls, path: str | None) -> str | None:
        if path is not None and (path.startswith("/") or ".." in path.split("/")):
            raise ValueError("prompt is a file inside the agent's flake: a relative path without '..'")
        return path
