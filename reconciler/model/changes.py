"""What a proposal means: settings before → after with their risk, and the files beside them.

Pure: given equal inputs, equal outputs, in a fixed order. The text diff shows what was written; this shows
what it does. Taking something away is low; giving something is never low, whatever else changes with it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from reconciler.model.risk import bash_risk, highest, model_risk
from reconciler.model.spec import McpServer, Spec
from reconciler.model.states import Risk

FILES_SHOWN = 50
SIZE_UNITS = {"K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}

Judgement = tuple[Risk, str]
Judge = Callable[[Any, Any], Judgement]


@dataclass(frozen=True, slots=True)
class Change:
    """One option before → after (JSON text in ASCII, None: not there) with its risk and the reason for it."""

    option: str
    before: str | None
    after: str | None
    risk: Risk
    reason: str


@dataclass(frozen=True, slots=True)
class FileId:
    """A file of a commit for comparison: git mode and blob id."""

    mode: str
    blob: str


def setting_changes(before: Spec | None, after: Spec) -> tuple[Change, ...]:
    """Settings that differ, in the order of the options.

    `before` None: a new agent. Its settings that are not the defaults are shown as added (model and role
    always), as risky as if they were given to an agent that had the defaults.
    """
    base = before if before is not None else Spec()
    found = []
    for option, judge in _RULES.items():
        old, new = _value(base, option), _value(after, option)
        always = before is None and option in {"role", "model"}
        if old == new and not always:
            continue
        risk, reason = judge(old, new)
        found.append(Change(option, None if before is None else _json(old), _json(new), risk, reason))
    return (*found, *_server_changes(base.mcpServers, after.mcpServers))


def file_changes(
    before: Mapping[str, FileId],
    after: Mapping[str, FileId],
    *,
    prompt: str | None,
    settings_changed: bool,
    platform: Literal["bare", "nixos"],
) -> tuple[Change, ...]:
    """Files that differ, each as a change of its own: what no setting shows.

    On the bare platform `agent.nix` can hold settings only, so its text alone is low and, when settings
    changed, not listed again. At most `FILES_SHOWN` files are listed one by one, the rest as one line with
    the worst risk.
    """
    changed = [path for path in sorted({*before, *after}) if before.get(path) != after.get(path)]
    found = []
    for path in changed:
        judged = _file_risk(path, prompt, settings_changed=settings_changed, platform=platform)
        if judged is not None:
            old, new = before.get(path), after.get(path)
            found.append(Change(f"file {path}", _file_text(old), _file_text(new), *judged))
    if len(found) > FILES_SHOWN:
        rest = found[FILES_SHOWN:]
        worst = highest(change.risk for change in rest)
        more = Change(f"{len(rest)} more files", None, None, worst, "too many to list; see the text diff")
        found = [*found[:FILES_SHOWN], more]
    return tuple(found)


def overall(changes: Sequence[Change]) -> Risk:
    """The risk of a whole proposal: that of its worst change."""
    return highest(change.risk for change in changes)


def _file_risk(
    path: str, prompt: str | None, *, settings_changed: bool, platform: Literal["bare", "nixos"]
) -> Judgement | None:
    if path == prompt:
        return Risk.LOW, "the text of the agent's prompt"
    if path != "agent.nix":
        return Risk.ELEVATED, "files outside agent.nix's hyperhive settings"
    if platform == "nixos":
        return Risk.ELEVATED, "agent.nix may also change NixOS outside of hyperhive.*"
    return None if settings_changed else (Risk.LOW, "the text changes, the settings do not")


def _file_text(file: FileId | None) -> str | None:
    return None if file is None else f"{file.mode} {file.blob[:12]}"


def _value(spec: Spec, option: str) -> Any:
    value: Any = spec
    for part in option.split("."):
        value = getattr(value, part)
    return value


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


# ------------------------------------------------------------------------------------------------ rules
def _added(before: Sequence[str], after: Sequence[str]) -> list[str]:
    return [item for item in after if item not in before]


def _models(before: list[str], after: list[str]) -> Judgement:
    if not before:
        return Risk.LOW, "fewer models: so far any that the host allows"
    if not after:
        return Risk.ELEVATED, "any model that the host allows"
    added = _added(before, after)
    return (
        (Risk.ELEVATED, f"more models: {', '.join(added)}")
        if added
        else (Risk.LOW, "no more models than before")
    )


def _role(before: str, after: str) -> Judgement:
    if after == "manager":
        return Risk.DANGEROUS, "a manager proposes for all agents and starts and stops them"
    return (Risk.LOW, "no longer the manager") if before == "manager" else (Risk.LOW, "an ordinary agent")


def _bash_allow(before: list[str], after: list[str]) -> Judgement:
    judged = [bash_risk(pattern) for pattern in _added(before, after)]
    if not judged:
        return Risk.LOW, "no more commands than before"
    worst = highest(risk for risk, _ in judged)
    return worst, "; ".join([reason for risk, reason in judged if risk is worst][:5])


def _bash_deny(before: list[str], after: list[str]) -> Judgement:
    removed = _added(after, before)
    if removed:
        return Risk.ELEVATED, f"no longer refused: {', '.join(removed[:5])}"
    return Risk.LOW, "no fewer commands are refused"


def _list_of(noun: str, risk: Risk) -> Judge:
    def judge(before: list[str], after: list[str]) -> Judgement:
        added = _added(before, after)
        return (
            (risk, f"more {noun}: {', '.join(added[:5])}")
            if added
            else (Risk.LOW, f"no more {noun} than before")
        )

    return judge


def _network(before: list[str], after: list[str]) -> Judgement:
    added = _added(before, after)
    if any("*" in host for host in added):
        return Risk.DANGEROUS, "a wildcard opens hosts that nobody has named"
    return (
        (Risk.ELEVATED, f"reaches {', '.join(added[:5])}")
        if added
        else (Risk.LOW, "no more hosts than before")
    )


def _send(before: list[str], after: list[str]) -> Judgement:
    added = _added(before, after)
    return (
        (Risk.ELEVATED, f"may send to {', '.join(added[:5])}")
        if added
        else (Risk.LOW, "no more recipients than before")
    )


def _budget(before: float | None, after: float | None) -> Judgement:
    if after is None:
        return Risk.ELEVATED, "no limit of its own any more"
    if before is not None and after > before:
        return Risk.ELEVATED, "a larger budget"
    return Risk.LOW, "not a larger budget"


def _bound(before: str | int, after: str | int) -> Judgement:
    if _amount(after) > _amount(before):
        return Risk.ELEVATED, "a larger share of the host"
    return Risk.LOW, "not more of the host than before"


def _amount(value: str | int) -> int:
    if isinstance(value, int):
        return value
    return int(value[:-1]) * SIZE_UNITS.get(value[-1], 1)


def _nix(_: bool, after: bool) -> Judgement:
    if after:
        return Risk.ELEVATED, "the container speaks to a Nix daemon, as an untrusted user"
    return Risk.LOW, "no Nix daemon any more"


def _low(reason: str) -> Judge:
    return lambda _before, _after: (Risk.LOW, reason)


def _server_changes(before: Mapping[str, McpServer], after: Mapping[str, McpServer]) -> list[Change]:
    found = []
    for key in sorted({*before, *after}):
        old, new = before.get(key), after.get(key)
        if old == new:
            continue
        risk = Risk.LOW if new is None else Risk.DANGEROUS
        reason = "the server is gone" if new is None else "runs a program of its own and offers its tools"
        texts = [None if server is None else _json(server.model_dump()) for server in (old, new)]
        found.append(Change(f"mcpServers.{key}", texts[0], texts[1], risk, reason))
    return found


_RULES: dict[str, Judge] = {
    "model": model_risk,
    "models": _models,
    "role": _role,
    "bash.allow": _bash_allow,
    "bash.deny": _bash_deny,
    "tools.allow": _list_of("tools", Risk.ELEVATED),
    "tools.server": _list_of("server-side tools", Risk.DANGEROUS),
    "uidMap.base": _low("the range was fixed when the agent was created, or is asked for now"),
    "network.allow": _network,
    "send.allow": _send,
    "budget.usdPerDay": _budget,
    "budget.tokensPerTurn": _budget,
    "limits.memoryMax": _bound,
    "limits.cpuQuota": _bound,
    "limits.tasksMax": _bound,
    "limits.diskMax": _bound,
    "prompt": _low("another file for the prompt; its text stands in the diff"),
    "compact.atTokens": _low("when the conversation is compacted"),
    "notes.maxBytes": _low("how long notes may grow"),
    "nix.enable": _nix,
}
OPTIONS = (*_RULES, "mcpServers")
