"""Everything that can happen to a turn, one row each: `docs/outcomes.md` is made of it (`python -m
reconciler.broker.casebook`), and tests make each of it happen.
"""

# ruff: noqa: E501 - one line per row of the table, and of the page

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from reconciler.broker.outcomes import (
    ALONE_AFTER,
    ASIDE_MAX,
    DEFER_AFTER,
    FAILURES_MAX,
    GOOD,
    RULES,
    TELL_AFTER,
    pause_s,
)

Fate = Literal["taken", "again", "counted", "proven"]
"""Of the message: taken by the turn; it comes again, marked; it does, and that counts against it; that counts
only if others were answered meanwhile."""
Rests = Literal["no", "agent", "all", "model"]
Told = Literal["nobody", "operator once", "operator after 10 min", "operator after 5 min"]


@dataclass(frozen=True, slots=True)
class Case:
    """One row. `sign`: how the harness or the host knows; `rests`: who begins no turn for a while; `told`: of
    people, at once. `trying`: what goes on inside the turn before."""

    key: str
    what: str
    sign: str
    outcome: str
    fate: Fate
    rests: Rests
    told: Told = "nobody"
    trying: str = "-"


_RETRIED = "the CLI repeats the request 4 times, with growing pauses"

CASES: tuple[Case, ...] = (
    Case("ok", "the turn ends well", "`is_error` false", "ok", "taken", "no"),
    Case("cancelled", "the operator cancels it", "the harness interrupted it", "cancelled", "taken", "no"),
    Case("500", "500 of the API", "status ≥ 500", "unavailable", "proven", "agent", "operator after 5 min", _RETRIED),
    Case("529", "529, overloaded", "status 529", "unavailable", "proven", "agent", "operator after 5 min", _RETRIED),
    Case("429-short", "429, retry-after of seconds", "status 429", "rate_limited", "again", "agent", trying=_RETRIED),
    Case("429-long", "429, retry-after of an hour", "status 429; the gateway read when it ends", "rate_limited",
         "again", "model", "operator after 10 min"),
    Case("429-none", "429 without retry-after", "status 429", "rate_limited", "again", "agent", trying=_RETRIED),
    Case("401", "401, the credential is refused", "status 401", "auth", "again", "all", "operator once", _RETRIED),
    Case("403", "403, not for this organization", "status 403", "auth", "again", "agent"),
    Case("403-twice", "403 again, in another turn or for another agent, and no success in between", "status 403",
         "auth", "again", "all", "operator once"),
    Case("404", "404, no such model", "status 404", "model_refused", "again", "agent"),
    Case("too-long", "the prompt is too long", "`terminal_reason`", "prompt_too_long", "counted", "agent",
         trying="the conversation is compacted, then once more"),
    Case("credit", "400, the credit balance is too low", "the API's words", "credit", "again", "all", "operator once"),
    Case("413", "413, the request is too large", "status 413", "api_error", "counted", "agent"),
    Case("400", "400, an invalid request", "status 400", "api_error", "counted", "agent"),
    Case("budget", "the gateway refuses it by the day's budget", "its words", "budget", "again", "agent"),
    Case("turn-budget", "the turn has used its own budget up", "the gateway's refusal", "turn_budget", "counted",
         "agent"),
    Case("refused", "the API cannot be reached", "502 of the gateway", "unavailable", "proven", "agent",
         "operator after 5 min", _RETRIED),
    Case("timeout", "no answer within the deadline", "502 of the gateway", "unavailable", "proven", "agent",
         "operator after 5 min", _RETRIED),
    Case("stall-first", "silence before the first byte", "the harness's watchdog", "stalled", "counted", "agent"),
    Case("stall-stream", "silence in the middle of the answer", "the harness's watchdog", "stalled", "counted",
         "agent"),
    Case("stall-tool", "a tool that gives no result", "the harness's watchdog", "stalled", "counted", "agent"),
    Case("cut", "the stream breaks off", "-", "ok", "taken", "no", trying="the CLI asks again, without a stream"),
    Case("sse-error", "an error in the middle of the stream", "-", "ok", "taken", "no",
         trying="the CLI asks again, without a stream"),
    Case("refusal", "the model refuses", "-", "ok", "taken", "no", trying="the CLI asks once more"),
    Case("max-tokens", "the answer reaches its longest length", "-", "ok", "taken", "no",
         trying="the CLI lets it go on"),
    Case("empty", "an empty answer", "-", "ok", "taken", "no", trying="the CLI asks once more"),
    Case("sigint", "SIGINT to the CLI, not by the harness", "`terminal_reason` aborted…, or no result", "crashed",
         "counted", "agent"),
    Case("sigterm", "SIGTERM to the CLI", "no result", "crashed", "counted", "agent"),
    Case("sigkill", "SIGKILL to the CLI", "no result", "crashed", "counted", "agent",
         trying="whatever it started is killed, too"),
    Case("harness", "the harness is killed", "another harness says hello", "crashed", "counted", "no",
         trying="the container is started again, with a pause that grows"),
    Case("container", "the container is killed", "its end", "crashed", "counted", "no", "operator once",
         "as every crash: told to the manager, else to the operator"),
    Case("stopped", "hived stops or restarts the container", "hived itself asked for it", "crashed", "again", "no"),
    Case("hived", "hived is killed", "-", "ok", "taken", "no",
         trying="the turn goes on; the harness says hello again and tells its end"),
    Case("gateway", "the gateway is killed", "-", "ok", "taken", "no",
         trying="the harness holds new connections for 60 s, the CLI asks again"),
)  # fmt: skip


def case(key: str) -> Case:
    """The row of that key."""
    return next(one for one in CASES if one.key == key)


_FATES = {
    "taken": "taken",
    "again": "comes again, marked",
    "counted": "comes again, marked; counts",
    "proven": "comes again, marked; counts if others were answered meanwhile",
}
_RESTS = {"no": "-", "agent": "the agent", "all": "all agents", "model": "all agents on that model"}


def rendered() -> str:
    """The page."""
    lines = [_HEAD.format(
        failures=FAILURES_MAX, alone=ALONE_AFTER, aside=ASIDE_MAX, tell=TELL_AFTER, defer=DEFER_AFTER,
    )]  # fmt: skip
    lines += ["| what happens | how it is known | inside the turn | outcome | the message | who rests | told at once |",
              "|---|---|---|---|---|---|---|"]  # fmt: skip
    for one in CASES:
        lines.append(
            f"| {one.what} | {one.sign} | {one.trying} | `{one.outcome}` | {_FATES[one.fate]} "
            f"| {_RESTS[one.rests]} | {one.told} |"
        )
    lines += ["", "## How long, and what to do", "", _RULES_HEAD]
    lines += ["| outcome | shown as | rests after the 1st, 2nd, 3rd … failure | whose fault it may be | what helps |",
              "|---|---|---|---|---|"]  # fmt: skip
    for name, rule in RULES.items():
        pauses = ", ".join(f"{pause_s(name, number):g}" for number in (1, 2, 3))
        lines.append(
            f"| `{name}` | {rule.reason} | {pauses} … {rule.longest_s:g} s | {_BLAMES[rule.blame]} | {rule.hint} |"
        )
    lines += ["", _TAIL.format(good=" and ".join(f"`{name}`" for name in sorted(GOOD, reverse=True))), ""]
    return "\n".join(lines)


_BLAMES = {
    "message": "the message's",
    "proven": "the message's, if a request of any agent succeeded since it last failed; else the world's",
    "agent": "the agent's own settings",
    "world": "the world's",
}
_HEAD = """# How turns end

Made from `reconciler/broker/casebook.py` and `outcomes.py` by `python -m reconciler.broker.casebook`; every row is
made to happen by a test. A message is never lost, and never delivered again without the mark `redelivered`.

- A message whose turns failed {alone} times is delivered alone; after {failures} it is **set aside**: the operator and
  the manager are told, its sender is not, the agent goes on with the next one. `hive redeliver ID` (or the button on
  its page) lets it come once more.
- {aside} messages set aside without a good turn in between are not the messages' fault: the agent is parked until
  `hive wake AGENT`, and no more of them is set aside.
- After {defer} turns in a row without an answer of the API, other messages get their try first; nothing is set aside.
- After {tell} turns in a row that fail because of what the agent is, the operator and the manager are told.
- What the gateway sees of the credential, the account, or a limit of a minute and more rests **all agents** (with a
  limit: all on that model). The operator is told once. When it is time, one agent tries for all, one with a message
  of the operator's first; when a request succeeds, all go on, after a limit one every half second. What a container
  says rests nobody but its own agent.
"""
_RULES_HEAD = """The pause doubles with every failed turn in a row. A rate limit whose end the gateway read lasts until then
(a week at most); what a container says of it is believed for an hour.
"""
_TAIL = """{good} need nothing. The operator's `hive wake AGENT` ends every rest, and makes that agent the one that tries
for all. The last line of a turn in the transcript, the agent's page, `hive agents AGENT` and `hive status` show the
outcome, until when the agent rests, and what helps; events are `turn.ended`, `model.trouble` and `model.recovered`.

The watchdog's limits are `watchdog.first_byte_s`, `next_byte_s` and `tool_s` of the host's configuration (420, 420 and
900 seconds unless it says otherwise); a container takes them up at its next start. A turn that was killed, that
stalled, or that was cancelled in a tool is over only when no process of the agent's user is left in its container."""


def main() -> None:
    """Write the page."""
    (Path(__file__).parents[2] / "docs/outcomes.md").write_text(rendered(), encoding="utf-8")


if __name__ == "__main__":
    main()
