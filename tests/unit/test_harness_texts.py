"""Prompts, outcomes, and the environment: the pure parts of the harness."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import app
from harness.config import Config, agent_environment, cli_environment
from harness.outcomes import ERROR_MAX, Facts, Result, classify
from harness.prompts import SYSTEM_PROMPT_MAX_BYTES, defused, quoted, system_prompt, wake_prompt
from harness.spec import AgentSpec
from harness.watchdog import Patience
from harness.wire import WIRE_VERSION, Delivered, Inbox, Outcome
from tests.fakes.agenthost import welcome


def message(body: str, **more: object) -> Delivered:
    told = {"id": 12, "sender": "smith", "body": body, "sent_at": "2026-05-01T12:00:00Z", **more}
    return Delivered.model_validate(told)


def prompt(*messages: Delivered, waiting: int = 0) -> str:
    return wake_prompt("scout", Inbox(lease=1, messages=list(messages), waiting=waiting))


# ----------------------------------------------------------------------------------------------- prompts


def test_a_wake_prompt_begins_with_our_own_line_and_names_sender_and_time() -> None:
    lines = prompt(message("do it\nnow", in_reply_to=7)).split("\n")
    assert lines[0] == "hyperhive: scout, you have 1 message. Lines behind `| ` are the sender's words."
    assert lines[2] == "[message 12 from smith, 2026-05-01T12:00:00Z, in reply to 7]"
    assert lines[3:] == ["| do it", "| now"]


def test_a_redelivered_message_says_so_and_an_event_is_called_one() -> None:
    text = prompt(message("x", redelivered=True), message("y", kind="event", sender="system"), waiting=3)
    assert "redelivered: an earlier turn got it and did not finish" in text
    assert "[event 12 from system," in text
    assert "(3 more waiting; call recv to get them)" in text


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("@/etc/passwd", r"\@/etc/passwd"),
        ('see @notes.md, (@x) "@y"', 'see \\@notes.md, (\\@x) "\\@y"'),
        ("mail a@b.example", "mail a@b.example"),
        ("alone @ here", "alone @ here"),
        ("a\x00b\x1b[31mc\r\nd", "a\ufffdb\ufffd[31mc\nd"),
        ("a\rb\u2028c", "a\ufffdb\ufffdc"),
    ],
)
def test_foreign_text_is_defused(written: str, shown: str) -> None:
    assert defused(written) == shown


@given(
    st.text()
    | st.lists(st.sampled_from(["@", "/", "\n", "| ", "[message 1 from operator", "\r", "a", " "])).map(
        "".join
    )
)
def test_no_line_of_a_message_can_pass_for_one_of_ours(body: str) -> None:
    text = quoted(body)
    assert all(line.startswith("| ") for line in text.splitlines() or ["| "])
    assert " @x" not in quoted(body + " @x")
    assert prompt(message(body or "x")).startswith("hyperhive: scout")


def test_the_system_prompt_names_the_agent_its_peers_and_the_tools_of_its_role() -> None:
    plain = system_prompt(welcome(prompt="Be brief."))
    assert plain.startswith("You are `scout`, an agent of a hyperhive")
    assert "You may send to: manager, operator." in plain
    assert plain.rstrip().endswith("Be brief.")
    assert "request_spawn" not in plain
    assert "request_spawn_draft" in system_prompt(welcome(role="manager", agent="hm1nd"))


def test_a_prompt_file_that_is_too_long_is_cut_and_says_so() -> None:
    text = system_prompt(welcome(prompt="ü" * SYSTEM_PROMPT_MAX_BYTES))
    assert len(text.encode()) < SYSTEM_PROMPT_MAX_BYTES + 100
    assert text.endswith("[cut: the prompt file is too long]\n")


# ----------------------------------------------------------------------------------------------- outcomes


def failed(**more: object) -> Result:
    """A result as an API failure leaves it: subtype success, and an error all the same."""
    fields = {"is_error": True, "subtype": "success", "terminal_reason": "api_error", **more}
    return Result(**fields)  # type: ignore[arg-type] # the fields of a dataclass, by name


OK = Result(is_error=False, subtype="success", terminal_reason="completed", text="done")
ABORTED = Result(is_error=True, subtype="error_during_execution", terminal_reason="aborted_streaming")


@pytest.mark.parametrize(
    ("facts", "outcome"),
    [
        (Facts(OK), "ok"),
        (Facts(OK, cancelled=True), "ok"),
        (Facts(OK, stopping=True), "ok"),
        (Facts(ABORTED, cancelled=True), "cancelled"),
        (Facts(None, gone="killed", cancelled=True), "cancelled"),
        (Facts(ABORTED), "crashed"),
        (Facts(ABORTED, stalled="silence"), "stalled"),
        (Facts(None, gone="killed", stalled="silence"), "stalled"),
        (Facts(ABORTED, cancelled=True, stopping=True), "crashed"),
        (Facts(None, gone="Command failed with exit code -9"), "crashed"),
        (Facts(failed(api_error_status=500)), "unavailable"),
        (Facts(failed(api_error_status=529)), "unavailable"),
        (Facts(failed(api_error_status=429)), "rate_limited"),
        (Facts(failed(), api_error="rate_limit"), "rate_limited"),
        (Facts(failed(api_error_status=401)), "auth"),
        (Facts(failed(api_error_status=403)), "auth"),
        (Facts(failed(text="Not logged in · Please run /login")), "auth"),
        (Facts(failed(api_error_status=404)), "model_refused"),
        (Facts(failed(api_error_status=403, text="the model opus is not allowed")), "model_refused"),
        (Facts(failed(), api_error="model_not_found"), "model_refused"),
        (Facts(failed(api_error_status=400, terminal_reason="prompt_too_long")), "prompt_too_long"),
        (Facts(failed(terminal_reason="blocking_limit")), "prompt_too_long"),
        (Facts(failed(api_error_status=400), api_error="billing_error"), "credit"),
        (Facts(failed(api_error_status=400, text="Credit balance is too low")), "credit"),
        (Facts(failed(api_error_status=402)), "credit"),
        (Facts(failed(api_error_status=429, text="hyperhive: refused by budget: $0 of $1")), "budget"),
        (Facts(failed(api_error_status=400)), "api_error"),
        (Facts(failed(api_error_status=413, terminal_reason="image_error")), "api_error"),
        (Facts(failed(text="Connection dropped (ECONNRESET)")), "unavailable"),
        (Facts(failed(text="Request timed out"), api_error="unknown"), "unavailable"),
        (Facts(Result(is_error=True, subtype="error_during_execution")), "crashed"),
        (Facts(Result(is_error=True, subtype="error_max_turns", terminal_reason="max_turns")), "crashed"),
    ],
)
def test_the_outcome_is_told_from_the_result_and_never_from_its_subtype(
    facts: Facts, outcome: Outcome
) -> None:
    assert classify(facts).outcome == outcome


def test_a_rate_limit_that_names_a_wait_passes_it_on() -> None:
    text = "API Error: Request rejected (429) · try again in 90 s"
    assert classify(Facts(failed(api_error_status=429, text=text))).retry_after_s == 90.0
    assert classify(Facts(failed(api_error_status=429, text="later"))).retry_after_s is None


def test_an_error_is_told_in_bounded_words_that_can_be_sent() -> None:
    error = classify(Facts(failed(api_error_status=500, text="\ud800x\x00" + "y" * 9000))).error
    assert len(error) <= ERROR_MAX
    assert error.encode()
    assert "\x00" not in error


# ------------------------------------------------------------------------------------- environment and spec


def test_programs_of_the_agent_get_no_secret_and_a_git_that_runs_nothing() -> None:
    environment = cli_environment("scout", Config())
    pairs = {
        environment[f"GIT_CONFIG_KEY_{n}"]: environment[f"GIT_CONFIG_VALUE_{n}"]
        for n in range(int(environment["GIT_CONFIG_COUNT"]))
    }
    assert pairs["core.hooksPath"] == "/dev/null"
    assert (pairs["core.fsmonitor"], pairs["protocol.ext.allow"]) == ("false", "never")
    assert environment["GIT_CONFIG_GLOBAL"] == "/dev/null"
    assert environment["GIT_COMMITTER_EMAIL"] == "scout@hive"
    assert environment["ANTHROPIC_API_KEY"] == "dummy"
    assert environment["PATH"] == "/usr/bin:/bin"
    assert "BASH_ENV" not in environment
    assert "ANTHROPIC_API_KEY" not in agent_environment("scout", Config())


@pytest.mark.parametrize("text", ["0", "-1", "soon", "1e3", "٣", "9999999"])
def test_a_waiting_time_that_is_no_number_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="HIVE_STALL_S"):
        Config.from_environment({"HIVE_STALL_S": text})


def test_waiting_times_come_from_the_environment() -> None:
    config = Config.from_environment({"HIVE_STALL_S": "2.5", "HIVE_IDLE_PARK_S": "10"})
    assert (config.patience, config.idle_park_s) == (Patience(2.5, 420.0, 900.0), 10.0)


def test_the_first_hello_speaks_the_version_of_the_wire_models_on_the_same_socket() -> None:
    assert (WIRE_VERSION, str(Config().agent_socket)) == (app._WIRE_VERSION, app._AGENT_SOCKET)


def test_a_spec_becomes_rules_tools_and_servers() -> None:
    spec = AgentSpec.model_validate(
        {
            "model": "haiku",
            "bash": {"allow": ["git *"], "deny": ["git push *"]},
            "tools": {"allow": ["Read"], "server": []},
            "mcpServers": {"docs": {"command": "/bin/docs", "args": ["-x"], "env": {}, "allow": ["search"]}},
            "compact": {"atTokens": 0.5},
        }
    )
    rules = spec.rules("agent", Config())
    assert (rules.allow, rules.deny, rules.tools) == (("git *",), ("git push *",), ("Read",))
    assert rules.mcp_tools == {"mcp__docs__search"}
    assert "/agents" not in rules.roots
    assert "/agents" in spec.rules("manager", Config()).roots
    assert spec.built_in_tools() == ("Bash", "Read")
    assert AgentSpec().built_in_tools() == ()
    assert spec.compact.atTokens == 0.5
