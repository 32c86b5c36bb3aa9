"""The demo hive as a new user sees it: the steps of the README, in a browser and with `hive`, all parts real.

The tests share one hive (fixture `hive`) and leave its three agents at work; each can run alone.
"""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.support.demohive import DemoHive, arguments_of, descendants

NAMES = ["hm1nd", "scout", "smith"]
AT_WORK = {"idle", "thinking"}


def last_message_id(hive: DemoHive) -> int:
    items = hive.json("messages")["items"]
    return max((m["id"] for m in items), default=0)


def messages_to_operator(hive: DemoHive, sender: str, after: int) -> list[str]:
    items = hive.json("messages")["items"]
    return [m["body"] for m in items if m["id"] > after and m["from"] == sender and m["to"] == "operator"]


def idle(hive: DemoHive, name: str) -> bool:
    agent = hive.agent(name)
    return bool(agent["state"] == "idle" and agent["inbox_depth"] == 0)


def proposal_in(hive: DemoHive, number: int, *states: str) -> dict[str, Any] | None:
    found = dict(hive.json("proposals", str(number)))
    return found if found["state"] in states else None


def newest_proposal(hive: DemoHive, agent: str, after: int, *states: str) -> dict[str, Any] | None:
    for p in hive.json("proposals")["items"]:
        if p["agent"] == agent and p["id"] > after and p["state"] in states:
            return dict(p)
    return None


def last_proposal_id(hive: DemoHive) -> int:
    return max((p["id"] for p in hive.json("proposals")["items"]), default=0)


# ------------------------------------------------------------------------------------------- the containers
@pytest.mark.parametrize("name", NAMES)
def test_root_inside_is_an_unprivileged_user_outside(hive: DemoHive, name: str) -> None:
    base = hive.agent(name)["uid_base"]
    harnesses = hive.pids_of("harness")
    maps = {pid: Path(f"/proc/{pid}/uid_map").read_text().split() for pid in harnesses}
    mine = [pid for pid, uid_map in maps.items() if uid_map == ["0", str(base), "65536"]]
    assert mine, f"no process of {name} is mapped to {base}: {maps}"
    for pid in mine:
        assert Path(f"/proc/{pid}").stat().st_uid == base


def test_a_file_made_inside_belongs_to_the_agents_own_range(hive: DemoHive) -> None:
    hive.hive("send", "scout", "where are you?", "--wait")
    base = hive.agent("scout")["uid_base"]
    made = [p for p in hive.state_file("agents", "scout", "home").rglob("*") if p.is_file()]
    assert made, "the CLI keeps its session in the agent's home"
    assert {p.lstat().st_uid for p in made} == {base + 1000}


@pytest.mark.parametrize("name", NAMES)
def test_a_container_has_loopback_and_nothing_else(hive: DemoHive, name: str) -> None:
    base = hive.agent(name)["uid_base"]
    inside = [pid for pid in hive.pids_of("harness") if Path(f"/proc/{pid}").stat().st_uid == base]
    assert inside
    for pid in inside:
        lines = Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:]
        assert [line.split(":")[0].strip() for line in lines] == ["lo"]


def test_services_run_under_their_own_users(hive: DemoHive) -> None:
    owners = {
        module: Path(f"/proc/{hive.pid_of(module)}").stat().st_uid
        for module in ("reconciler", "reconciler.gateway", "ui", "reconciler.scripted")
    }
    assert owners["reconciler"] == 0
    assert len({owners["ui"], owners["reconciler.gateway"], 0}) == 3


# ------------------------------------------------------------------------------------------- 1 and 2
def test_the_dashboard_lists_the_agents_and_moves_without_a_reload(hive: DemoHive, page: Page) -> None:
    page.goto(hive.address)
    for name in NAMES:
        expect(page.get_by_role("link", name=name).first).to_be_visible()
    page.evaluate("window.stillHere = true")
    text = f"flow check {os.urandom(4).hex()}"
    hive.hive("send", "scout", text)
    expect(page.get_by_text(text).first).to_be_visible(timeout=60_000)
    assert page.evaluate("window.stillHere") is True
    hive.until(lambda: idle(hive, "scout"), "scout answers")


def test_the_operator_asks_scout_and_scout_answers(hive: DemoHive, page: Page) -> None:
    before = last_message_id(hive)
    page.goto(f"{hive.address}/agents/scout")
    box = page.locator("textarea:visible").first
    box.fill("What is in your repository?")
    box.press("Enter")
    answers = hive.until(lambda: messages_to_operator(hive, "scout", before), "scout's answer")
    assert answers[0].strip()
    # the transcript came in while it was made: the tool call and the message stand on the page as it is
    expect(page.get_by_text("send", exact=False).first).to_be_visible(timeout=60_000)
    expect(page.get_by_text("Bash", exact=False).first).to_be_visible(timeout=60_000)
    hive.until(lambda: idle(hive, "scout"), "scout rests")
    lines = hive.json("transcript", "scout")["items"]
    assert {"turn_begin", "prompt", "tool_call", "tool_result", "turn_end"} <= {
        line["kind"] for line in lines
    }
    spent = hive.json("spending")["items"]
    assert any(row["agent"] == "scout" and row["output_tokens"] > 0 for row in spent)


# ------------------------------------------------------------------------------------------- 3
def ask_for_change(hive: DemoHive, text: str) -> dict[str, Any]:
    """Ask the manager for a change of smith; the pending proposal it makes."""
    before = last_proposal_id(hive)
    hive.hive("send", "hm1nd", text)
    return hive.until(
        lambda: newest_proposal(hive, "smith", before, "pending", "invalid"), f"a proposal for: {text}"
    )


def test_a_change_is_proposed_shown_approved_and_in_force(hive: DemoHive, page: Page) -> None:
    generation, leader = (before := hive.agent("smith"))["generation"], before["container"]["leader_pid"]
    proposal = ask_for_change(hive, "give smith the model opus and let it run `nix build .*`")
    assert proposal["requested_by"] == "hm1nd"
    changes = {c["option"]: c for c in proposal["changes"]}
    assert "opus" in changes["model"]["after"]
    assert changes["model"]["risk"] == "elevated"
    assert any("nix build .*" in (c["after"] or "") for c in proposal["changes"])

    page.goto(hive.address)
    expect(page.get_by_text("smith").first).to_be_visible()
    page.goto(f"{hive.address}/approvals/{proposal['id']}")
    expect(page.get_by_text("elevated").first).to_be_visible()
    expect(page.get_by_text("nix build .*").first).to_be_visible()
    expect(page.locator("body")).to_contain_text("agent.nix")
    page.get_by_role("button", name=re.compile("^Approve and build", re.IGNORECASE)).click()
    hive.until(lambda: proposal_in(hive, proposal["id"], "deployed", "failed"), "the deployment")
    done = hive.json("proposals", str(proposal["id"]))
    assert done["state"] == "deployed", done["error"]
    expect(page.get_by_text("deployed", exact=False).first).to_be_visible(timeout=60_000)

    smith = hive.until(lambda: a if (a := hive.agent("smith"))["state"] in AT_WORK else None, "smith is back")
    assert smith["generation"] == generation + 1
    assert smith["container"]["leader_pid"] == leader, "neither model nor shell need another container"
    assert smith["model"]["active"] == "opus" or smith["model"]["queued"] == "opus"
    spec = hive.json("spec", "smith")["spec"]
    assert spec["model"] == "opus"
    assert "nix build .*" in spec["bash"]["allow"]
    # in force: the next request for smith names the model that opus means
    hive.hive("send", "smith", "say hello", "--wait")
    asked = [r for r in model_log(hive) if r.get("agent") == "smith"]
    assert "opus" in asked[-1]["model"]


def test_a_denial_reaches_the_manager_with_its_note(hive: DemoHive) -> None:
    hive.until(lambda: idle(hive, "hm1nd"), "the manager rests")
    proposal = ask_for_change(hive, "give smith the model sonnet and let it run `cargo test`")
    hive.hive("deny", str(proposal["id"]), "--note", "not this week")
    told = hive.until(
        lambda: [
            m["body"]
            for m in hive.json("messages", "--agent", "hm1nd")["items"]
            if m["to"] == "hm1nd" and "not this week" in m["body"]
        ],
        "the manager hears of it",
    )
    assert str(proposal["id"]) in told[0]
    assert hive.json("proposals", str(proposal["id"]))["state"] == "denied"
    hive.until(lambda: idle(hive, "hm1nd"), "the manager rests")


def model_log(hive: DemoHive) -> list[dict[str, Any]]:
    """What the scripted model was asked, oldest first."""
    lines = hive.state_file("log", "requests.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


# ------------------------------------------------------------------------------------------- 5
def test_a_commit_that_does_not_evaluate_is_invalid_and_the_proposer_is_told_why(hive: DemoHive) -> None:
    hive.until(lambda: idle(hive, "hm1nd"), "the manager rests")
    proposal = ask_for_change(hive, "break smith with a setting of the wrong type")
    assert proposal["state"] == "invalid"
    assert proposal["error"]
    told = hive.until(
        lambda: [
            m["body"]
            for m in hive.json("messages", "--agent", "hm1nd")["items"]
            if m["to"] == "hm1nd" and "invalid" in m["body"] and str(proposal["id"]) in m["body"]
        ],
        "the manager hears of it",
    )
    assert proposal["error"].splitlines()[0][:40] in told[0]


def test_what_never_says_hello_is_rolled_back(hive: DemoHive) -> None:
    hive.until(lambda: idle(hive, "hm1nd"), "the manager rests")
    before = hive.agent("smith")
    proposal = ask_for_change(hive, "break smith with a memory limit that is too small")
    assert proposal["state"] == "pending", proposal["error"]
    hive.hive("approve", str(proposal["id"]), "--yes")
    failed = hive.until(lambda: proposal_in(hive, proposal["id"], "failed", "deployed"), "the end", 90)
    assert failed["state"] == "failed"
    assert failed["tag"] == f"failed/{proposal['id']}"
    smith = hive.until(
        lambda: a if (a := hive.agent("smith"))["state"] in AT_WORK else None, "smith is running again"
    )
    assert smith["generation"] == before["generation"]
    hive.hive("send", "smith", "say hello", "--wait")


# ------------------------------------------------------------------------------------------- 6
def test_hived_killed_in_the_middle_loses_nothing_and_restarts_no_agent(hive: DemoHive) -> None:
    leaders = {name: hive.agent(name)["container"]["leader_pid"] for name in NAMES}
    before = last_message_id(hive)
    hive.hive("send", "scout", "take your time: answer slowly")
    hive.until(lambda: hive.agent("scout")["state"] == "thinking", "scout thinks")
    old = hive.pid_of("reconciler")
    os.kill(old, signal.SIGKILL)
    hive.until(
        lambda: (
            (pids := hive.pids_of("reconciler"))
            and old not in pids
            and hive.hive("status", check=False)[0] == "0"
        ),
        "a new hived answers",
    )
    hive.until(lambda: messages_to_operator(hive, "scout", before), "scout's answer", 90)
    hive.until(lambda: idle(hive, "scout"), "scout rests")
    answers = messages_to_operator(hive, "scout", before)
    assert len(answers) == 1, answers
    assert {name: hive.agent(name)["container"]["leader_pid"] for name in NAMES} == leaders


def test_a_nap_outlives_the_kill_of_hived_and_of_the_harness_and_ends_by_a_message(hive: DemoHive) -> None:
    hive.until(lambda: idle(hive, "smith"), "smith rests")
    hive.hive("nap", "smith", "3600", "--note", "until the build is done")

    def naps() -> str | None:
        try:
            seen = hive.agent("smith")
        except (AssertionError, ValueError):
            return None  # hived is on its way
        return seen["until"] if seen["state"] == "napping" else None

    end = hive.until(naps, "smith naps")
    base = hive.agent("smith")["uid_base"]
    os.kill(hive.pid_of("reconciler"), signal.SIGKILL)
    assert hive.until(naps, "it naps under the next hived") == end
    old = harnesses_of(hive, base)
    assert old
    os.kill(old[0], signal.SIGKILL)
    hive.until(lambda: (new := harnesses_of(hive, base)) and not set(new) & set(old), "another harness")
    assert hive.until(naps, "it naps in its next container") == end
    hive.hive("send", "smith", "where are you?", "--wait")
    hive.until(lambda: idle(hive, "smith"), "it is awake")


def harnesses_of(hive: DemoHive, base: int) -> list[int]:
    """Processes of the harness whose root is that uid, parents first."""
    found = []
    for pid in hive.pids_of("harness"):
        try:
            is_its = Path(f"/proc/{pid}/uid_map").read_text().split() == ["0", str(base), "65536"]
        except OSError:
            continue
        if is_its:
            found.append(pid)
    return found


# ------------------------------------------------------------------------------------------- 4
def test_the_manager_drafts_an_agent_in_two_steps(hive: DemoHive, page: Page) -> None:
    hive.until(lambda: idle(hive, "hm1nd"), "the manager rests")
    before = last_proposal_id(hive)
    hive.hive("send", "hm1nd", "draft a new agent scribe that keeps the minutes")
    proposal = hive.until(
        lambda: newest_proposal(hive, "scribe", before, "pending", "invalid"), "the draft's proposal", 90
    )
    assert proposal["state"] == "pending", proposal["error"]
    assert proposal["kind"] == "spawn"
    assert "notes.md" in proposal["staged_files"]
    page.goto(f"{hive.address}/approvals/{proposal['id']}")
    expect(page.get_by_text("notes.md").first).to_be_visible()
    hive.hive("approve", str(proposal["id"]), "--yes")
    hive.until(lambda: proposal_in(hive, proposal["id"], "deployed", "failed"), "the end", 90)
    scribe = hive.until(
        lambda: a if (a := hive.agent("scribe"))["state"] in AT_WORK else None, "scribe is at work"
    )
    assert scribe["commit"] == proposal["commit"]
    notes = hive.state_file("agents", "scribe", "state", "notes.md")
    assert notes.read_text().strip()
    assert notes.stat().st_uid == scribe["uid_base"] + 1000
    hive.hive("destroy", "scribe", "--yes")
    hive.until(lambda: "scribe" not in [a["name"] for a in hive.json("agents")["items"]], "scribe is gone")


# ------------------------------------------------------------------------------------------- the policy
def test_a_shell_command_without_a_pattern_is_refused_with_the_reason(hive: DemoHive) -> None:
    before = last_message_id(hive)
    hive.hive("send", "scout", "try a forbidden command")
    answer = hive.until(lambda: messages_to_operator(hive, "scout", before), "scout's answer")[0]
    lines = hive.json("transcript", "scout")["items"]
    refused = [line for line in lines if line["kind"] == "policy_refusal"]
    assert refused, answer
    assert refused[-1]["data"]["reason"]
    hive.until(lambda: idle(hive, "scout"), "scout rests")


def test_the_credential_and_other_agents_are_not_in_a_container(hive: DemoHive) -> None:
    for pid in hive.pids_of("harness"):
        words = arguments_of(pid)
        assert not any("sk-ant" in word for word in words)
    shells = [pid for pid in descendants(hive.process.pid) if "claude" in " ".join(arguments_of(pid)[:1])]
    for pid in shells:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        assert b"sk-ant" not in environment
