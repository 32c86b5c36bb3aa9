"""`hive` against a real control server with fake services: what it sends, waits for and exits by."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from reconciler.cli import follow, talk
from reconciler.cli.api import Hive
from reconciler.cli.failure import Unreachable
from reconciler.control import models as api
from reconciler.control.server import ControlServer
from reconciler.model.states import ProposalState, UserRole
from tests.contract.cli_kit import ROOT, a_server, hive
from tests.fakes.objects import COMMIT, DIGEST, a_message, a_proposal, an_event
from tests.fakes.services import FakeServices
from tests.fakes.unixhttp import until

pytestmark = [pytest.mark.asyncio, pytest.mark.usefixtures("server")]


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
        ("redeliver 1", "would be waiting"),
        ("answer 1 blue", "would be answered"),
        ("cancel-question 1", "would be cancelled"),
        ("model scout opus", "would set scout"),
        ("login", "would make a link"),
        ("rollback scout", "would go back"),
        ("stop scout", "would stop scout"),
        ("new-session scout", "would begin a new session of scout: it is idle now"),
        ("nap scout 60", "would let scout rest: it is idle now"),
    ],
)
async def test_every_write_says_in_a_dry_run_what_it_would_do(
    services: FakeServices, command: str, words: str
) -> None:
    services.broker.stored.append(a_message(1, "operator", "scout", "hi"))
    ran = await hive(*command.split(), "--dry-run")
    assert (ran.status, words in ran.out) == (0, True), ran


async def test_verbs_that_steer_pass_dry_run_and_note_on(services: FakeServices) -> None:
    for verb in ("start", "stop", "restart", "wake", "cancel", "compact", "new-session", "destroy"):
        ran = await hive(verb, "scout", "--dry-run", "--note", "why not")
        assert (ran.status, ran.out.startswith("would "), " scout: it is " in ran.out) == (0, True, True)
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
    assert "waiting" in (await hive("messages")).out, "as the pages say it"
    ran = await hive("send", "scout", stdin=b"\n")
    assert (ran.status, "standard input is empty" in ran.err) == (2, True), "and says what to give"


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


async def test_options_are_chosen_by_number(services: FakeServices) -> None:
    assert (await hive("answer", "1", "--option", "1", "--option", "3")).out == "question 1 is answered\n"
    assert (await hive("answer", "1", "and", "soon", "--option", "2")).out == "question 1 is answered\n"
    given = [call[1][2] for call in services.broker.calls if call[0] == "answer"]
    assert [(one.options, one.text) for one in given] == [([1, 3], ""), ([2], "and soon")]  # type: ignore[attr-defined]


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
    for state in ("deployed", "denied"):
        services.approvals.known[1] = a_proposal(1, state=ProposalState(state), digest=None)
        ran = await hive("approve", "1")
        assert (ran.status, f"proposal 1 is {state}" in ran.err) == (1, True)
    assert [name for name, _ in services.approvals.calls if name == "approve"] == []


async def test_approve_waits_for_an_examination_that_goes_on(
    services: FakeServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "PAUSE_S", 0.001)
    services.approvals.next_states = [ProposalState(s) for s in ("examining", "examining", "pending")]
    ran = await hive("approve", "1", "--yes")
    assert ran.status == 0, ran.err
    fresh = a_proposal(1, state=ProposalState.EXAMINING, digest=None, risk=None, changes=[])
    services.approvals.known[1] = fresh
    assert "not known yet" in (await hive("proposals", "1")).out


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
