"""Where things are inside the container, and the environments that programs get there.

The harness reads no policy from here: paths, waiting times and the fixed environment only. Everything that
was in the harness's own environment is dropped at the start, because the SDK hands its whole environment on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.watchdog import Patience

AGENT_UID = 1000
MODEL_PORT = 8080
PATH = "/usr/bin:/bin"
_API_RETRIES = 4
_IDLE_PARK_S = 86_400.0  # for a host that is away: by itself it says when an idle CLI is to be ended
_STALL_S = 420.0  # the CLI itself gives a silent stream up after 300 s, a silent request after 361 s
_STREAM_STALL_S = 420.0
_TOOL_STALL_S = 900.0  # a command of the shell may take 600 s
_PATIENCE = Patience(_STALL_S, _STREAM_STALL_S, _TOOL_STALL_S)

# What keeps git from running programs that a repository's own configuration names. GIT_CONFIG_* ranks above
# every file, so the agent's repositories cannot take it back.
_GIT_CONFIG = (
    ("core.hooksPath", "/dev/null"),
    ("core.fsmonitor", "false"),
    ("core.pager", "cat"),
    ("core.sshCommand", "/bin/false"),
    ("protocol.ext.allow", "never"),
    ("safe.bareRepository", "explicit"),
    ("commit.gpgSign", "false"),
    ("tag.gpgSign", "false"),
    ("gc.auto", "0"),
    ("maintenance.auto", "false"),
    ("init.defaultBranch", "main"),
    ("advice.detachedHead", "false"),
)


@dataclass(frozen=True, slots=True)
class Config:
    """Paths inside the container and waiting times in seconds.

    `patience`: how long a turn may be silent, by what it waits for; `api_retries`: how often the CLI repeats
    a request that failed.
    """

    run: Path = Path("/run/hive")
    state: Path = Path("/state")
    home: Path = Path("/home/agent")
    config: Path = Path("/config")
    agents: Path = Path("/agents")
    cli: Path = Path(__file__).parent / "claude-as-agent"
    claude: str = ""
    idle_park_s: float = _IDLE_PARK_S
    patience: Patience = _PATIENCE
    api_retries: int = _API_RETRIES
    model_port: int = MODEL_PORT

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> Config:
        """Reads `HIVE_IDLE_PARK_S`, `HIVE_STALL_S`, `HIVE_STREAM_STALL_S`, `HIVE_TOOL_STALL_S`,
        `HIVE_API_RETRIES`, `HIVE_CLAUDE`; the rest has one value.

        ValueError names a number that is none.
        """
        return cls(
            claude=env.get("HIVE_CLAUDE", ""),
            idle_park_s=_seconds(env, "HIVE_IDLE_PARK_S", _IDLE_PARK_S),
            patience=Patience(
                _seconds(env, "HIVE_STALL_S", _STALL_S),
                _seconds(env, "HIVE_STREAM_STALL_S", _STREAM_STALL_S),
                _seconds(env, "HIVE_TOOL_STALL_S", _TOOL_STALL_S),
            ),
            api_retries=_retries(env.get("HIVE_API_RETRIES", "")),
        )

    @property
    def agent_socket(self) -> Path:
        return self.run / "agent.sock"

    @property
    def model_socket(self) -> Path:
        return self.run / "model.sock"


def _seconds(env: Mapping[str, str], name: str, default: float) -> float:
    text = env.get(name, "")
    if not text:
        return default
    value = float(text) if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) else 0.0
    if not 0 < value < 1e6:
        raise ValueError(f"{name} is {text!r}; it must be a number of seconds above 0")
    return value


def _retries(text: str) -> int:
    if text and not re.fullmatch(r"[0-9]|10", text):
        raise ValueError(f"HIVE_API_RETRIES is {text!r}; it must be a number from 0 to 10")
    return int(text) if text else _API_RETRIES


def agent_environment(agent: str, config: Config) -> dict[str, str]:
    """The environment of every program that runs as the agent's user: no secret, git made harmless, own name
    as author."""
    hardening = {"GIT_CONFIG_COUNT": str(len(_GIT_CONFIG))}
    for number, (key, value) in enumerate(_GIT_CONFIG):
        hardening[f"GIT_CONFIG_KEY_{number}"] = key
        hardening[f"GIT_CONFIG_VALUE_{number}"] = value
    return {
        "PATH": PATH,
        "HOME": str(config.home),
        "USER": "agent",
        "LOGNAME": "agent",
        "SHELL": "/bin/bash",
        "LANG": "C.UTF-8",
        "TMPDIR": "/tmp",  # noqa: S108 - the container's own tmpfs
        "GIT_AUTHOR_NAME": agent,
        "GIT_AUTHOR_EMAIL": f"{agent}@hive",
        "GIT_COMMITTER_NAME": agent,
        "GIT_COMMITTER_EMAIL": f"{agent}@hive",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "/bin/false",
        "GIT_ALLOW_PROTOCOL": "file",
        "GIT_PAGER": "cat",
        "PAGER": "cat",
        "GIT_EDITOR": "true",
        "GIT_SEQUENCE_EDITOR": "true",
        **hardening,
    }


def cli_environment(agent: str, config: Config) -> dict[str, str]:
    """What Claude Code and every command of its shell see. The key is a dummy: the gateway outside adds the
    real one."""
    environment = {
        **agent_environment(agent, config),
        "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{config.model_port}",
        "ANTHROPIC_API_KEY": "dummy",
        "CLAUDE_AGENT_SDK_SKIP_VERSION_CHECK": "1",
        "DISABLE_TELEMETRY": "1",
        "DISABLE_AUTOUPDATER": "1",
        "DISABLE_ERROR_REPORTING": "1",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        # a turn is over when it says so: nothing of it may go on behind it
        "CLAUDE_CODE_DISABLE_BACKGROUND_TASKS": "1",
        # the harness compacts at its own watermark
        "DISABLE_AUTO_COMPACT": "1",
        "CLAUDE_CODE_MAX_RETRIES": str(config.api_retries),
        # a further MCP server that does not answer holds a turn up for so long, and its answers are cut
        "MCP_TIMEOUT": "10000",
        "MAX_MCP_OUTPUT_TOKENS": "25000",
        # recv may wait 180 s
        "MCP_TOOL_TIMEOUT": "240000",
    }
    if config.claude:
        environment["HIVE_CLAUDE"] = config.claude
    return environment
