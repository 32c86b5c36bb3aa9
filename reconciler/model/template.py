"""The files of a new agent's repository. Pure; a test holds `modules/templates/agent/` equal to them.

Values come from people and from agents: they are validated against the spec by whoever evaluates the commit,
and escaped here so that they can only ever be values.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from reconciler.model.spec import Spec
from reconciler.model.states import Role

_FLAKE = """\
{
  description = "An agent of a hyperhive";

  # The hive never runs this file: it evaluates agent.nix with its own modules. It is here for people, so that
  # `nix build` and `nix flake check` work in this repository.
  inputs.hyperhive.url = "hyperhive";

  outputs =
    inputs@{ hyperhive, ... }:
    hyperhive.lib.mkAgent {
      inherit inputs;
      agent = ./agent.nix;
    };
}
"""

_AGENT = """\
# What this agent is. A change takes effect when it is committed, proposed, and approved by the operator.
# Every option: docs/agent-nix.md of hyperhive. Plain values only: no lib, no pkgs, no imports.
{ ... }:
{
  hyperhive = {
    # The model: haiku, sonnet, opus, fable, or the id of one.
    model = @MODEL@;

    # agent, or manager: may propose for all agents. At most one manager in a hive.
    role = @ROLE@;

    # Shell commands that may run, as Claude Code patterns. The empty list means no shell.
    bash.allow = @BASH@;

    # Whom this agent may send messages to: names of agents, "manager", "operator", or "*".
    send.allow = @SEND@;

    # A file of this repository whose text is added to the system prompt.
    prompt = "prompt.md";
  };
}
"""

_PROMPTS = {
    Role.AGENT: """\
You are one agent of a hive. You work on what messages ask of you, in /state, where your files stay.
Keep what you must not forget in /state/notes.md.
""",
    Role.MANAGER: """\
You are the manager of a hive. You work on what the operator asks of you, in /state, where your files stay.
Keep what you must not forget in /state/notes.md.

The agents' repositories are in /agents/NAME/config. To change an agent, edit its agent.nix there, commit, and
request that the commit be applied; the operator decides.
""",
}

_LINE_MAX = 80
_SEND = {Role.AGENT: ("manager", "operator"), Role.MANAGER: ("*", "operator")}


def template_files(role: Role, model: str | None, bash_allow: Sequence[str]) -> dict[str, str]:
    """Path → text of a new agent's first commit: flake.nix, agent.nix, prompt.md."""
    values = {
        "@MODEL@": nix_string(model or Spec().model),
        "@ROLE@": nix_string(role),
        "@SEND@": nix_list(_SEND[role]),
        "@BASH@": nix_list(bash_allow),
    }
    # One pass, so that a value which looks like a mark stays a value.
    agent = re.sub("|".join(values), lambda mark: values[mark.group()], _AGENT)
    return {"flake.nix": _FLAKE, "agent.nix": agent, "prompt.md": _PROMPTS[role]}


def nix_string(text: str) -> str:
    """A Nix string literal that evaluates to exactly `text`."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("${", "\\${")
    return '"' + escaped.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t") + '"'


def nix_list(items: Sequence[str]) -> str:
    """A Nix list of strings inside `hyperhive = { … }`: on one line if that stays readable."""
    if not items:
        return "[ ]"
    line = "[ " + " ".join(nix_string(item) for item in items) + " ]"
    if len(line) <= _LINE_MAX:
        return line
    return "[\n" + "".join(f"      {nix_string(item)}\n" for item in items) + "    ]"
