"""`hive` against a real control server with fake services: what it prints, sends, and exits by."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import pty
import re
import shlex
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from reconciler.cli import follow, reference, talk
from reconciler.cli.api import Hive
from reconciler.cli.failure import Unreachable
from reconciler.cli.grammar import parser_of
from reconciler.cli.main import main
from reconciler.cli.verbs import VERBS
from reconciler.control import models as api
from reconciler.control.auth import Door, Ids
from reconciler.control.server import ControlServer
from reconciler.errors import OperatorError
from reconciler.model.states import Desired, ProposalState, Risk, UserRole
from tests.fakes.objects import COMMIT, DIGEST, a_message, a_proposal, an_agent, an_event
from tests.fakes.services import FakeServices
from tests.fakes.unixhttp import Api, until

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.asyncio
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="another user needs root")

HOSTILE = "red \x1b[31m\x1b]0;title\x07 back\x08 \u202egnirts\u2066 zero\u200bwidth c1\x9b line\u2028end"
# What must never reach a terminal from an agent: escapes and other controls, bidirectional, invisible ones.
DANGEROUS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")


@dataclass
class Ran:
    """What a command printed, and its exit status."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def run_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hive-") as folder:
        Path(folder).chmod(0o755)
        monkeypatch.setenv("HIVE_RUN", folder)
        yield Path(folder)


@pytest_asyncio.fixture
async def services() -> FakeServices:
    return FakeServices()


def a_server(services: FakeServices, run_dir: Path) -> ControlServer:
    return ControlServer(services.bundle(), run_dir, Ids(os.getegid(), os.geteuid(), os.getegid()))


@pytest_asyncio.fixture(autouse=True)
async def server(services: FakeServices, run_dir: Path) -> AsyncIterator[ControlServer]:
    server = a_server(services, run_dir)
    await server.start()
    yield server
    await server.close()


async def hive(*arguments: str, stdin: bytes | None = None) -> Ran:
    """Run a command in a thread of this process (never on a terminal)."""
    out, err = io.StringIO(), io.StringIO()

    def run() -> int:
        source = io.TextIOWrapper(io.BytesIO(stdin or b""))
        before, sys.stdin = sys.stdin, source
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                return main(arguments)
        finally:
            sys.stdin = before

    return Ran(await asyncio.to_thread(run), out.getvalue(), err.getvalue())


# ---------------------------------------------------------------------------------------------- reading
READS = {
    "status": "/v1/status",
    "agents": "/v1/agents",
    "agents scout": "/v1/agents/scout",
    "plan scout": "/v1/agents/scout/plan",
    "why scout": "/v1/agents/scout/why",
    "transcript scout": "/v1/agents/scout/transcript",
    "logs scout -n 1": "/v1/agents/scout/logs?lines=1",
    "spec scout": "/v1/agents/scout/spec",
    "generations scout": "/v1/agents/scout/generations",
    "model scout": "/v1/agents/scout",
    "hold": "/v1/holds",
    "kept": "/v1/kept",
    "proposals": "/v1/proposals",
    "proposals 1": "/v1/proposals/1",
    "proposals --state denied": "/v1/proposals?state=denied",
    "diff 1": "/v1/proposals/1/diff",
    "drafts": "/v1/drafts",
    "messages": "/v1/messages",
    "questions": "/v1/questions",
    "events --after 1": "/v1/events?after=1",
    "audit": "/v1/audit",
    "spending": "/v1/spending",
    "users": "/v1/users",
    "sessions": "/v1/sessions",
}


@pytest.mark.parametrize("command", READS)
async def test_json_is_exactly_the_apis_and_words_are_for_people(command: str, run_dir: Path) -> None:
    async with Api(run_dir / Door.CONTROL) as control:
        expected = (await control.call("GET", READS[command])).json
    machine = await hive(*command.split(), "--json")
    assert (machine.status, machine.json, machine.err) == (0, expected, "")
    person = await hive(*command.split())
    assert person.status == 0
    assert person.out.strip()
    assert not DANGEROUS.search(person.out)
    assert "\x1b" not in person.out, "no colours without a terminal"


async def test_the_plan_of_all_agents_is_a_list_of_plans() -> None:
    plans = (await hive("plan", "--json")).json["items"]
    assert [plan["agent"] for plan in plans] == ["hm1nd", "scout"]


async def test_tables_are_aligned_whatever_they_hold(services: FakeServices) -> None:
    services.agents.known = {n: an_agent(n, status=s) for n, s in (("a", "字 wide"), ("a-long-name", ""))}
    lines = (await hive("agents")).out.splitlines()
    assert len({line.index("agent" if number else "ROLE") for number, line in enumerate(lines)}) <= 2
    places = {re.search(r"agent(?= )| ROLE", line).start() for line in lines[1:] if line}  # type: ignore[union-attr]
    assert len(places) == 1


async def test_status_says_what_needs_the_operator() -> None:
    shown = (await hive("status")).out
    assert "1 needs you: 1 to approve, 0 to answer" in shown
    assert "the scripted model" in shown
    assert "○ idle" in shown


async def test_status_names_the_held_and_the_stuck(
    services: FakeServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold = api.Hold(scope="*", by="alice", reason="", at="2026-11-22T10:00:00Z")
    found = (await services.agents.status()).model_copy(
        update={"needs_operator": 5, "held": ["scout"], "stuck": ["a", "b"], "hold": hold}
    )

    async def status() -> api.HiveStatus:
        return found

    monkeypatch.setattr(services.agents, "status", status)
    said = "5 need you: 1 to approve, 0 to answer, held: scout, stuck: a, b, the whole hive is held"
    assert said in (await hive("status")).out


# -------------------------------------------------------------------------------------------- lifecycle
async def test_hold_and_release_name_one_agent_or_all(services: FakeServices) -> None:
    held = await hive("hold", "scout", "--note", "looks odd")
    assert "hold: scout" in held.out
    assert "looks odd" in held.out
    assert (await hive("hold", "--all", "--json")).json["items"][0]["scope"] == "*"
    assert "the hive" in (await hive("hold")).out
    assert "nothing is held" not in (await hive("release", "--all")).out, "scout has a hold of its own"
    assert "nothing is held" in (await hive("release", "scout")).out
    both = await hive("hold", "scout", "--all")
    assert both.status == 2
    assert "either" in both.err


async def test_a_dry_run_of_a_hold_says_so(services: FakeServices) -> None:
    assert "would hold scout" in (await hive("hold", "scout", "--dry-run")).out
    assert services.lifecycle.on == {}


async def test_rollback_names_the_proposal_that_does_it(services: FakeServices) -> None:
    done = await hive("rollback", "scout", "3", "--now")
    assert "proposal 9: scout goes back to generation 3" in done.out
    (_, (_, name, request)) = services.lifecycle.calls[-1]
    assert (name, getattr(request, "generation", None), getattr(request, "now", None)) == ("scout", 3, True)
    assert "would go back to generation 1" in (await hive("rollback", "scout", "--dry-run")).out


async def test_purge_needs_the_name_again(services: FakeServices) -> None:
    refused = await hive("purge", "gone")
    assert refused.status == 1
    assert "--confirm gone" in refused.err
    assert (await hive("purge", "gone", "--confirm", "gon")).status == 1
    assert services.lifecycle.calls == []
    assert "is being purged" in (await hive("purge", "gone", "--confirm", "gone")).out


# ------------------------------------------------------------------------------------------- hostile text
async def test_hostile_text_is_neutralised_wherever_it_is_shown(services: FakeServices) -> None:
    known = services.agents.known
    known["scout"] = an_agent("scout", status=HOSTILE, reason=HOSTILE)
    services.approvals.known[1] = a_proposal(
        1, description=HOSTILE, error=HOSTILE, requested_by=HOSTILE, files=[HOSTILE],
        changes=[api.Change(option=HOSTILE, before=HOSTILE, after=HOSTILE, risk=Risk.LOW, reason=HOSTILE)],
    )  # fmt: skip
    services.approvals.log_lines = [HOSTILE]
    services.broker.stored = [a_message(1, "scout", "operator", HOSTILE)]
    services.broker.open_questions[1] = services.broker.open_questions[1].model_copy(
        update={"question": HOSTILE, "options": [HOSTILE]}
    )
    kinds: dict[str, dict[str, Any]] = {
        "text": {"text": HOSTILE}, "tool_call": {"name": HOSTILE, "input": {"x": HOSTILE}},
        "tool_result": {"text": HOSTILE}, "policy_refusal": {"tool": HOSTILE, "reason": HOSTILE},
        "turn_end": {"outcome": HOSTILE, "error": HOSTILE}, "context": {"x": HOSTILE},
    }  # fmt: skip
    services.broker.lines = [
        api.TranscriptLine(id=n, turn=1, seq=n, at=HOSTILE, kind=kind, data=data)
        for n, (kind, data) in enumerate(kinds.items(), 1)
    ]
    services.events.history = [an_event(1, "note", text=HOSTILE)]
    commands = [
        "status", "agents", "agents scout", "proposals", "proposals 1", "approve 1 --yes", "messages",
        "messages --full", "questions", "transcript scout", "logs scout", "events --after 0", "diff 1",
    ]  # fmt: skip
    for command in commands:
        for how in ([], ["--json"]):
            ran = await hive(*command.split(), *how)
            assert not DANGEROUS.search(ran.out + ran.err), (command, how)
            if how:
                json.loads(ran.out)
    services.agents.fail = OperatorError(HOSTILE, hint=HOSTILE)
    refused = await hive("status", "--json")
    assert not DANGEROUS.search(refused.out + refused.err)
    assert refused.json["error"]["message"] == HOSTILE, "the same value, escaped"


async def test_a_line_break_in_hostile_text_cannot_pass_for_a_line_of_ours(services: FakeServices) -> None:
    services.broker.stored = [
        a_message(1, "scout", "operator", "hi\nmessage 2 from operator to scout: do it")
    ]
    assert not re.search(r"^message 2", (await hive("messages", "--full")).out, re.MULTILINE)
    assert len((await hive("messages")).out.splitlines()) == 2
    services.broker.lines = [
        api.TranscriptLine(id=1, turn=1, seq=1, at="", kind="text", data={"text": "a\r\nb\x0bc"})
    ]
    assert len((await hive("transcript", "scout")).out.splitlines()) == 1


# ---------------------------------------------------------------------------------------------- writing
@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("new scribe --approve", "would be"),
        ("propose scout " + "c" * 40, "would be"),
        ("approve 1", "would be"),
        ("deny 1", "would be denied"),
        ("cancel-proposal 1", "would be cancelled"),
        ("send scout hello", "would send it to scout"),
        ("messages --mark-read 1", "would be"),
        ("answer 1 blue", "would be answered"),
        ("cancel-question 1", "would be cancelled"),
        ("model scout opus", "would set scout"),
        ("login", "would make a link"),
        ("rollback scout", "would go back"),
        ("stop scout", "would stop scout"),
    ],
)
async def test_every_write_says_in_a_dry_run_what_it_would_do(
    services: FakeServices, command: str, words: str
) -> None:
    services.broker.stored.append(a_message(1, "operator", "scout", "hi"))
    ran = await hive(*command.split(), "--dry-run")
    assert (ran.status, words in ran.out) == (0, True), ran


async def test_verbs_that_steer_pass_dry_run_and_note_on(services: FakeServices) -> None:
    for verb in ("start", "stop", "restart", "wake", "cancel", "destroy"):
        ran = await hive(verb, "scout", "--dry-run", "--note", "why not")
        assert (ran.status, ran.out.startswith(f"would {verb} scout")) == (0, True)
        name, (_, agent, act) = services.agents.calls[-1]
        assert (name, agent, act) == (verb, "scout", api.Act(dry_run=True, note="why not"))
    assert (await hive("stop", "scout")).out == "stop: scout is idle, desired running\n"


async def test_the_model_is_shown_set_and_given_back(services: FakeServices) -> None:
    assert (await hive("model", "scout")).out == "scout: haiku\n"
    assert (await hive("model", "scout", "opus")).out == "scout: haiku, opus from the next turn on\n"
    await hive("model", "scout", "--default")
    sent = [arguments[2] for name, arguments in services.agents.calls if name == "set_model"]
    assert sent == [api.SetModel(model="opus"), api.SetModel(model=None)]
    assert (await hive("model", "scout", "opus", "--default")).status == 2


async def test_a_new_agent_waits_for_an_approval_or_is_approved_at_once(services: FakeServices) -> None:
    ran = await hive("new", "scribe", "--allow", "git *", "--allow", "ls", "--model", "opus")
    assert ran.status == 3
    assert "`hive approve 9`" in ran.out
    (_, (_, request)) = services.agents.calls[-1]
    assert request == api.NewAgent(name="scribe", model="opus", bash_allow=["git *", "ls"])
    assert (await hive("new", "hm2nd", "--role", "manager", "--approve")).status == 0
    assert (await hive("new", "scribe", "--json")).json["state"] == "examining"
    assert (await hive("new", "scribe", "--wait")).status == 2


async def test_messages_come_from_arguments_or_standard_input(services: FakeServices) -> None:
    assert (await hive("send", "scout", "two", "words")).out == "message 1 to scout\n"
    await hive("send", "scout", "-", stdin="from a pipe: ä\n".encode())
    await hive("send", "--reply-to", "1", "scout", stdin=b"no dash needed\n\n")
    assert [m.body for m in services.broker.stored] == ["two words", "from a pipe: ä", "no dash needed\n"]
    assert services.broker.stored[2].in_reply_to == 1


async def test_a_message_that_is_too_large_is_refused_and_hived_goes_on(services: FakeServices) -> None:
    ran = await hive("send", "scout", "-", "--json", stdin=b"x" * 10_000_000)
    assert (ran.status, ran.json["error"]["code"]) == (1, "too-large")
    assert "larger than 1 MiB" in ran.err
    assert (await hive("status")).status == 0
    assert services.broker.stored == []


async def test_send_can_wait_for_the_answer(services: FakeServices, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(talk, "PAUSE_S", 0.01)
    services.broker.stored = [a_message(7, "scout", "operator", "an old one", 3)]
    waiting = asyncio.create_task(hive("send", "scout", "--wait", "how are you?"))
    await until(lambda: len(services.broker.stored) == 2)
    sent = services.broker.stored[-1]
    services.broker.stored += [
        a_message(20, "scout", "hm1nd", "not for you", sent.id),
        a_message(21, "scout", "operator", "unasked"),
        a_message(22, "scout", "operator", "well\x07, thanks", sent.id),
    ]
    ran = await waiting
    assert (ran.status, ran.out) == (0, "message 22 from scout:\nwell␇, thanks\n")
    late = await hive("send", "scout", "hello?", "--wait", "--timeout", "0")
    assert (late.status, "has not answered" in late.err) == (1, True)


async def test_questions_are_answered_and_cancelled(services: FakeServices) -> None:
    assert (await hive("answer", "1", "the", "first")).out == "question 1 is answered\n"
    assert services.broker.calls[-1][1][2] == api.Answer(text="the first")
    assert (await hive("cancel-question", "1", "--json")).json["state"] == "cancelled"
    assert (await hive("answer", "5", "x")).status == 1


async def test_login_prints_the_link(services: FakeServices) -> None:
    assert (await hive("login")).out.splitlines()[0] == "http://localhost:7000/login/tok"
    await hive("login", "--user", "vera", "--role", "viewer")
    (_, (_, request)) = services.accounts.calls[-1]
    assert request == api.NewLoginLink(user="vera", role=UserRole.VIEWER)


async def test_messages_are_marked_as_read(services: FakeServices) -> None:
    services.broker.stored = [a_message(1, "scout", "operator", "hi")]
    assert (await hive("messages", "--mark-read", "1")).out == "message 1 is read\n"


# ------------------------------------------------------------------------------------------ deciding
async def test_approve_shows_the_changes_and_sends_the_digest_that_it_showed(services: FakeServices) -> None:
    ran = await hive("approve", "1", "--now", "--note", "fine")
    assert ran.status == 0
    assert re.search(r'model +"haiku" +"opus" +elevated +dearer', ran.out)
    (_, (_, number, request)) = services.approvals.calls[-1]
    assert (number, request) == (1, api.Approve(digest=DIGEST, note="fine", now=True))


async def test_a_proposal_that_changed_after_it_was_shown_is_not_approved(
    services: FakeServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = a_proposal(1, digest="old" * 20)

    async def stale(proposal: int) -> api.Proposal:
        return shown

    monkeypatch.setattr(services.approvals, "get", stale)
    ran = await hive("approve", "1", "--json")
    assert (ran.status, ran.json["error"]["code"]) == (1, "conflict")
    assert '"haiku"' in ran.err, "what is approved is shown besides the JSON"
    assert services.approvals.known[1].state is ProposalState.PENDING


async def test_what_is_not_pending_cannot_be_approved(services: FakeServices) -> None:
    for state in ("examining", "deployed", "denied"):
        services.approvals.known[1] = a_proposal(1, state=ProposalState(state), digest=None)
        ran = await hive("approve", "1")
        assert (ran.status, f"proposal 1 is {state}" in ran.err) == (1, True)
    assert [name for name, _ in services.approvals.calls if name == "approve"] == []


@pytest.mark.parametrize(
    ("states", "status"),
    [(["building", "activating", "deployed"], 0), (["building", "failed"], 1), (["superseded"], 1)],
)
async def test_approve_can_follow_to_the_end_and_exits_by_it(
    services: FakeServices, monkeypatch: pytest.MonkeyPatch, states: list[str], status: int
) -> None:
    monkeypatch.setattr(follow, "PAUSE_S", 0.001)
    services.approvals.next_states = [ProposalState(s) for s in ["pending", *states]]
    ran = await hive("approve", "1", "--wait")
    assert ran.status == status, ran.err
    assert [ran.out.count(line) for line in ("  building\n", "  done\n")] == [1, 1], "each log line once"
    assert f"proposal 1 for smith: {states[-1]}" in ran.out
    services.approvals.next_states = [ProposalState(s) for s in ["pending", *states]]
    machine = await hive("approve", "1", "--wait", "--json")
    assert (machine.status, machine.json["state"]) == (status, states[-1])


async def test_following_outlives_a_restart_of_hived(
    services: FakeServices, server: ControlServer, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "PAUSE_S", 0.001)
    waiting = asyncio.create_task(hive("approve", "1", "--wait"))
    await until(lambda: services.approvals.known[1].state is ProposalState.APPROVED)
    await server.close()
    services.approvals.known[1] = a_proposal(1, state=ProposalState.DEPLOYED, generation=2)
    successor = a_server(services, run_dir)
    await successor.start()
    ran = await waiting
    assert (ran.status, ran.out.splitlines()[-1]) == (0, "smith runs generation 2")
    await successor.close()


@pytest.mark.parametrize("took_effect", [True, False])
async def test_an_approval_that_hived_died_over_takes_effect_once(
    services: FakeServices, monkeypatch: pytest.MonkeyPatch, took_effect: bool
) -> None:
    monkeypatch.setattr(follow, "PAUSE_S", 0.001)
    post, posted = Hive.post, []

    def dies(self: Hive, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        posted.append(path)
        if took_effect or len(posted) > 1:
            post(self, path, body)
        if len(posted) == 1:
            services.approvals.next_states = [] if took_effect else [ProposalState.PENDING]
            raise Unreachable("hived went away")
        services.approvals.next_states = [ProposalState.DEPLOYED]
        return {}

    monkeypatch.setattr(Hive, "post", dies)
    if took_effect:
        monkeypatch.setattr(follow, "ENDS", {"approved"})
    ran = await hive("approve", "1", "--wait")
    assert "approve" in posted[0]
    assert len(posted) == (1 if took_effect else 2)
    assert [name for name, _ in services.approvals.calls].count("approve") == 1
    assert ran.status == (1 if took_effect else 0)


async def test_propose_waits_for_an_approval_or_examines_shows_and_approves(
    services: FakeServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "PAUSE_S", 0.001)
    assert (await hive("propose", "smith", COMMIT)).status == 3
    services.approvals.next_states = [ProposalState.EXAMINING, ProposalState.PENDING]
    ran = await hive("propose", "smith", COMMIT, "--approve", "--description", "d")
    assert ran.status == 0
    assert services.approvals.calls[-1][0] == "approve"
    services.approvals.next_states = [ProposalState.EXAMINING, ProposalState.INVALID]
    assert (await hive("propose", "smith", COMMIT, "--approve")).status == 1


async def test_deny_and_cancel_carry_the_note(services: FakeServices) -> None:
    assert (await hive("deny", "1", "--note", "no")).out == "proposal 1 for smith is denied\n"
    assert services.approvals.calls[-1][1][2] == api.Decide(note="no")
    assert (await hive("cancel-proposal", "1", "--json")).json["state"] == "cancelled"


# ------------------------------------------------------------------------------------------- following
async def test_hints_of_turns_do_not_hide_what_happened(services: FakeServices) -> None:
    services.events.history = [an_event(1, "turn.event"), an_event(2, "agent.crashed")]
    plain = await hive("events")
    assert ("agent.crashed" in plain.out, "turn.event" in plain.out) == (True, False)
    assert "turn.event" in (await hive("events", "--kind", "turn.event")).out


async def test_events_can_be_followed_over_a_restart_of_hived(
    services: FakeServices, server: ControlServer, run_dir: Path
) -> None:
    services.events.live.put_nowait(an_event(4, "first"))
    command = [sys.executable, "-m", "reconciler.cli", "events", "--follow", "--after", "2", "--json"]
    child = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert child.stdout is not None
    async with asyncio.timeout(10):
        seen = [json.loads(await child.stdout.readline()) for _ in range(2)]
        await server.close()
        services.events.history = [an_event(5, "missed")]
        successor = a_server(services, run_dir)
        await successor.start()
        seen.append(json.loads(await child.stdout.readline()))
        child.terminate()
        await child.communicate()
        await successor.close()
    assert [(event["id"], event["kind"]) for event in seen] == [
        (3, "agent.state"), (4, "first"), (5, "missed")
    ]  # fmt: skip


# ---------------------------------------------------------------------------------------------- errors
async def test_errors_go_to_standard_error_and_as_an_envelope_to_programs() -> None:
    person = await hive("agents", "nobody")
    assert (person.status, person.out, person.err) == (1, "", "hive: there is no agent nobody\n")
    program = await hive("agents", "nobody", "--json")
    assert program.json == {"error": {"code": "not-found", "message": "there is no agent nobody", "hint": ""}}
    assert program.err == person.err
    for name in ("..", "a/b", "", "-x", "\u00fc", "a" * 40):
        ran = await hive("agents", "--", name)
        assert (ran.status, "not an agent name" in ran.err) == (1, True), name


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("", "usage: hive VERB"),
        ("aproove 1", "did you mean `hive approve`?"),
        ("xyzzy", "`hive help` lists the verbs"),
        ("approve", "arguments are required"),
        ("approve one", "not a whole number"),
        ("approve -1", "not a whole number"),
        ("status --colour", "unrecognized arguments: --colour"),
        ("new a --role king", "invalid choice"),
        ("status --js", "unrecognized arguments"),
    ],
)
async def test_wrong_usage_exits_with_2_and_says_where_help_is(command: str, words: str) -> None:
    ran = await hive(*command.split())
    assert (ran.status, ran.out) == (2, "")
    assert words in ran.err


async def test_a_user_name_that_is_none_is_told_what_one_may_be(services: FakeServices) -> None:
    for name in ("x y", "", "Vera", "9a", "a" * 32):
        ran = await hive("login", "--user", name)
        assert (ran.status, "a letter first" in ran.err, "pattern" in ran.err) == (1, True, False), name
    assert (await hive("login", "--user", "a" * 31)).status == 0


async def test_no_event_of_a_kind_is_said_with_the_kind() -> None:
    assert "no event has the kind nonsense" in (await hive("events", "--kind", "nonsense")).out


async def test_json_before_the_verb_is_told_where_it_belongs() -> None:
    ran = await hive("--json", "status")
    assert (ran.status, "`hive status --json`" in ran.err) == (2, True)


async def test_a_restart_of_a_held_agent_says_that_it_waits(services: FakeServices) -> None:
    services.agents.known["scout"] = services.agents.known["scout"].model_copy(update={"held": True})
    assert "`hive release scout`" in (await hive("restart", "scout")).out
    assert "release" not in (await hive("stop", "scout")).out


async def test_a_destroyed_agent_has_no_container_to_tell_of(services: FakeServices) -> None:
    assert "limits" in (await hive("agents", "scout")).out
    services.agents.known["scout"] = services.agents.known["scout"].model_copy(
        update={"desired": Desired.DESTROYED}
    )
    out = (await hive("agents", "scout")).out
    assert ("limits" in out, "container" in out) == (False, False)


async def test_help_is_there_for_every_verb() -> None:
    overview = await hive("help")
    assert overview.status == 0
    for verb in VERBS:
        assert f"  {verb.name} " in overview.out
        for words in (("help", verb.name), (verb.name, "--help")):
            ran = await hive(*words)
            assert (ran.status, ran.out.startswith(f"usage: hive {verb.name}")) == (0, True)
            assert all(line in ran.out for line, _ in verb.examples)


async def test_without_hived_it_says_how_to_start_it(server: ControlServer, run_dir: Path) -> None:
    await server.close()
    gone = await hive("status", "--json")
    assert (gone.status, gone.json["error"]["code"]) == (1, "unavailable")
    assert f"there is no {run_dir}/control.sock" in gone.err
    assert "systemctl start hived" in gone.err
    (run_dir / "control.sock").touch()
    assert "nobody listens" in (await hive("status")).err


async def test_the_demos_own_command_does_not_speak_of_systemd(
    server: ControlServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await server.close()
    monkeypatch.setenv("HIVE_DEMO", "1")
    gone = await hive("status")
    assert "systemctl" not in gone.err
    assert "the demo starts it again by itself" in gone.err


@pytest.mark.parametrize("made", ["reconciler.cli.reference", "reconciler.control.openapi"])
async def test_what_makes_the_references_can_be_asked_how(made: str, tmp_path: Path) -> None:
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", made, "--help"), cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await child.communicate()
    assert (child.returncode, err) == (0, b"")
    assert out.startswith(b"usage: ")


@needs_root
async def test_who_is_no_operator_is_told_how_to_become_one(run_dir: Path) -> None:
    child = await asyncio.create_subprocess_exec(
        *(
            "/usr/bin/python3",
            "-c",
            "from reconciler.cli.main import main; raise SystemExit(main(['status']))",
        ),
        cwd="/",
        env={"PYTHONPATH": str(ROOT), "HIVE_RUN": str(run_dir), "PYTHONDONTWRITEBYTECODE": "1"},
        user=54321,
        group=54321,
        extra_groups=[],
        stderr=asyncio.subprocess.PIPE,
    )
    _, err = await child.communicate()
    if b"ModuleNotFoundError" in err:
        pytest.skip("another user cannot read this clone")
    assert child.returncode == 1
    assert b"you may not open" in err
    assert b"members of the group" in err


async def test_a_reader_that_has_enough_is_no_error() -> None:
    command = f"{shlex.quote(sys.executable)} -m reconciler.cli agents | head -c1"
    done = await asyncio.to_thread(
        subprocess.run, ["bash", "-o", "pipefail", "-c", command], cwd=ROOT, capture_output=True, timeout=10
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"A", b"")


# ------------------------------------------------------------------------------------------- terminals
async def on_terminal(*arguments: str, answer: str = "", **env: str) -> Ran:
    """Run a command on a terminal of its own; type `answer` when it asks."""

    def run() -> Ran:
        leader, follower = pty.openpty()
        command = [sys.executable, "-m", "reconciler.cli", *arguments]
        environment = {**os.environ, "TERM": "xterm", **env}
        child = subprocess.Popen(
            command, cwd=ROOT, stdin=follower, stdout=follower, stderr=follower, env=environment
        )
        os.close(follower)
        seen, typed = b"", False
        with contextlib.suppress(OSError):  # EIO: the other end was closed
            while chunk := os.read(leader, 65536):
                seen += chunk
                if not typed and b"[y/N]" in seen:
                    os.write(leader, f"{answer}\n".encode())
                    typed = True
        os.close(leader)
        return Ran(child.wait(10), seen.decode().replace("\r\n", "\n"), "")

    return await asyncio.to_thread(run)


async def test_on_a_terminal_approving_and_destroying_are_asked_about(services: FakeServices) -> None:
    declined = await on_terminal("approve", "1", answer="n")
    assert declined.status == 3
    assert "was not approved" in declined.out
    assert (await on_terminal("destroy", "scout", answer="")).status == 1
    assert (await on_terminal("destroy", "scout", answer="no")).status == 1
    assert services.agents.calls == []
    assert (await on_terminal("approve", "1", answer="y")).status == 0
    services.approvals.known[1] = a_proposal(1)
    unasked = await on_terminal("approve", "1", "--yes")
    assert (unasked.status, "[y/N]" in unasked.out) == (0, False)


async def test_colours_are_for_terminals_that_want_them() -> None:
    assert "\x1b[33m" in (await on_terminal("proposals")).out
    assert "\x1b" not in (await on_terminal("proposals", NO_COLOR="1")).out
    assert "\x1b" not in (await on_terminal("proposals", "--json")).out


# -------------------------------------------------------------------------------------------- documents
async def test_the_reference_and_the_schema_are_up_to_date() -> None:
    wanted = "run: python -m reconciler.cli.reference"
    assert (ROOT / "docs" / "cli.md").read_text() == reference.text(), wanted
    schema = (await hive("schema")).out
    assert (ROOT / "docs" / "spec.schema.json").read_text() == schema, wanted
    assert json.loads(schema)["properties"]["model"]["default"] == "haiku"


async def test_every_example_parses() -> None:
    for verb in VERBS:
        for line, _ in verb.examples:
            command = re.sub(
                r"\$\(.*?\)", COMMIT, line.split(" | hive ")[-1].split(" | jq")[0].split(" > ")[0]
            )
            words = shlex.split(command.removeprefix("hive "))
            assert words[0] == verb.name
            parser_of(verb).parse_intermixed_args(words[1:])


async def test_the_version_is_the_projects() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert (await hive("version")).out == f"hyperhive {project}\n"
    assert (await hive("--version")).out == f"hyperhive {project}\n"
    assert (await hive("version", "--json")).json == {"version": project}


async def test_a_configuration_is_checked_without_a_hive(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"ui_port": 7001}')
    assert (await hive("check-config", str(file))).out == f"{file} is valid\n"
    assert (await hive("check-config", str(file), "--json")).json["ui_port"] == 7001
    file.write_text('{"ui_port": "seven"}')
    ran = await hive("check-config", str(file), "--json")
    assert (ran.status, "ui_port" in ran.json["error"]["message"]) == (1, True)
    file.write_text('{"timeouts": {"resync_s": 0.01}}')
    ran = await hive("check-config", str(file), "--json")
    told = "timeouts.resync_s: Input should be greater than or equal to 0.1"
    assert (ran.status, told in ran.json["error"]["message"]) == (1, True)
    assert (await hive("check-config", str(tmp_path / "missing"))).status == 1


async def test_it_starts_without_the_large_libraries() -> None:
    code = (
        "import sys; from reconciler.cli.main import main; status = main(['agents', '--json']); "
        "heavy = {'pydantic', 'aiohttp', 'asyncio', 'structlog', 'dataclasses'} & set(sys.modules); "
        "assert not heavy, heavy; sys.exit(status)"
    )
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=10
    )
    assert (done.returncode, done.stderr) == (0, b"")
