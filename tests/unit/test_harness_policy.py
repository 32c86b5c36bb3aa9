"""Which shell commands and paths the policy lets through: a table, written by hand."""

from __future__ import annotations

import asyncio
import os
import posixpath
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from harness.policy import reference
from harness.policy.commands import Unreadable, simple_commands
from harness.policy.engine import Decision, Policy, Rules
from harness.policy.patterns import Pattern, problem
from harness.policy.words import known
from tests.support.policycases import Case, cases

ROOTS = ("/state", "/config", "/home/agent")


async def normal(paths: Sequence[str]) -> Sequence[str]:
    """A world without links."""
    return [posixpath.normpath(path) for path in paths]


def decide_command(
    command: object, allow: tuple[str, ...], deny: tuple[str, ...] = (), cwd: str = "/state"
) -> Decision:
    rules = Rules(allow=allow, deny=deny, roots=ROOTS, work_tree=ROOTS[:2], values={"HOME": "/home/agent"})
    return asyncio.run(Policy(rules, normal).decide("Bash", {"command": command}, cwd))


@pytest.mark.parametrize("case", cases(), ids=lambda case: repr(case.command)[:60])
def test_a_command_is_decided_as_the_table_says(case: Case) -> None:
    decision = decide_command(case.command, case.allow, case.deny)
    assert decision.allowed is case.allowed, decision.reason
    assert case.why in decision.reason


def test_the_table_is_large_and_says_each_thing_once() -> None:
    table = [(case.command, case.allow, case.deny) for case in cases()]
    assert len(table) == len(set(table)) >= 250


@pytest.mark.parametrize("command", ["", "   ", None, 5, ["git"]])
def test_a_command_that_is_none_is_refused(command: object) -> None:
    assert "the command is empty" in decide_command(command, ("git *",)).reason


def test_a_refusal_says_what_and_why_which_patterns_there_are_and_what_to_do() -> None:
    reason = decide_command("git log && touch zz", ("git *", "ls"), ("git push *",)).reason
    assert "'touch zz' matches no allowed pattern" in reason
    assert "Allowed patterns: git *, ls; denied: git push *" in reason
    assert "can be proposed" in reason


def test_a_relative_path_begins_where_the_cli_is() -> None:
    assert decide_command("echo x > ../y", ("echo *",), cwd="/state/deep").allowed
    assert not decide_command("echo x > ../y", ("echo *",), cwd="/state").allowed


def test_a_link_that_leads_out_or_into_a_closed_place_is_refused() -> None:
    async def follow(paths: Sequence[str]) -> Sequence[str]:
        return [path.replace("/state/out", "/etc").replace("/state/in", "/state/.git") for path in paths]

    policy = Policy(Rules(allow=("echo *", "tee *"), roots=ROOTS), follow)
    for command in ("echo x > out/y", "tee in/config", "cd in", "cd out; ls"):
        decision = asyncio.run(policy.decide("Bash", {"command": command}, "/state"))
        assert not decision.allowed, command


def test_a_command_with_too_many_files_or_parts_is_refused() -> None:
    assert (
        "in several calls"
        in decide_command("tee " + " ".join(f"f{n}" for n in range(300)), ("tee *",)).reason
    )
    assert "more than 500" in decide_command("ls\n" * 501, ("ls",)).reason


@pytest.mark.parametrize("command", ["cd a; cd b; cd c; cd d; cd e; cd f; cd g; cd h; cd i"])
def test_folders_do_not_grow_without_bound(command: str) -> None:
    assert "too many changes of the folder" in decide_command(command, ("ls",)).reason


@pytest.mark.parametrize(
    ("text", "words", "allows"),
    [
        ("git:*", ["git"], True),
        ("git:*", ["git", "log"], True),
        ("git:*", ["gitx"], False),
        ("git*", ["gitx"], True),
        ("git*", ["git", "log"], True),
        ("npm run test:*", ["npm", "run", "test"], True),
        ("npm run test:*", ["npm", "run", "test", "-v"], True),
        ("npm run test:*", ["npm", "run", "tests"], False),
        ("Bash(ls)", ["ls"], True),
        ("Bash", ["anything"], True),
        ("Bash(*)", ["anything", "at all"], True),
        ("* --version", ["git", "--version"], True),
        ("* --version", ["--version"], False),
        ("git * main", ["git", "push", "origin", "main"], True),
        ("git * main", ["git", "main"], True),
        ("git log", ["git log"], False),
        ("git log", ["git", "log", "-p"], False),
        ("a.c", ["abc"], False),
    ],
)
def test_patterns_match_word_by_word(text: str, words: list[str], allows: bool) -> None:
    assert Pattern.parse(text).allows(known(*words)) is allows


@pytest.mark.parametrize(
    ("text", "words", "denies"),
    [
        ("git push *", ["git", "push"], True),
        ("git push *", ["git", "push", "origin"], True),
        ("git push *", ["git", "pushy"], False),
        ("git push", ["git", "push", "x"], False),
        ("git * main", ["git", "main"], True),
        ("cat *secret*", ["cat", "a", "my secret"], True),
        ("*", ["anything"], True),
        ("* --force", ["git", "push", "--force"], True),
        ("a b*c *", ["a", "bxxc"], True),
        ("a b*c *", ["a", "bxxcd"], False),
    ],
)
def test_a_deny_pattern_catches_words_and_text(text: str, words: list[str], denies: bool) -> None:
    assert Pattern.parse(text).denies(known(*words)) is denies


@pytest.mark.parametrize(
    "text",
    [
        "git *",
        "git:*",
        "Bash(ls)",
        "Bash",
        "*",
        "FOO=* git *",
        "X=*",
        "cat <<*",
        "ls &",
        "echo $(*)",
        "cat <(*)",
        "/opt/tool/run *",
        "./x *",
        "find * -exec * ;",
        "[ *",
        "* --version",
        "git log --output=*",
        "a.b",
        "7z *",
    ],
)
def test_a_pattern_that_can_match_is_no_problem(text: str) -> None:
    assert problem(text) == ""


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        " git",
        "git ",
        "Bash()",
        "Bash( git *)",
        "git\nlog",
        "git\x00",
        "git && ls",
        "git | cat",
        "if *",
        "git * > x",
        "'git' *",
        "$HOME/x",
        "~/x",
        "Read(/x)",
        "git:* push",
        "while:*",
        "-x",
        "a;b",
        "(ls)",
        "!",
        "FOO=1 if",
        "git * 2>&1",
        "[[ *",
        "*=* git",
    ],
)
def test_a_pattern_that_can_never_match_is_a_problem(text: str) -> None:
    assert problem(text)


def test_words_are_what_bash_would_make_of_them() -> None:
    (words,) = simple_commands("""git commit -m "a \\"b\\" \\n" 'c $d' e'f'"g" '' 2>&1""")
    assert words == ("git", "commit", "-m", 'a "b" \\n', "c $d", "efg", "")


def test_a_deeply_nested_text_is_unreadable_and_no_crash() -> None:
    with pytest.raises(Unreadable):
        simple_commands("git log" + " | ( git log" * 300 + " )" * 300)


# --------------------------------------------------------------------------------------------- other tools


def decide(
    tool: object, arguments: object, *, tools: tuple[str, ...] = ("Read", "Edit", "Write", "Glob", "Grep")
) -> Decision:
    rules = Rules(allow=("git *",), tools=tools, roots=ROOTS, mcp_tools=frozenset({"mcp__docs__search"}))
    return asyncio.run(Policy(rules, normal).decide(tool, arguments, "/state"))


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("Read", {"file_path": "/state/notes.md"}),
        ("Read", {"file_path": "notes.md"}),
        ("Read", {"file_path": "/home/agent/.claude/projects/-state/6f1d/tool-results/b1.txt"}),
        ("Edit", {"file_path": "/config/agent.nix"}),
        ("Write", {"file_path": "/home/agent/x"}),
        ("Write", {"file_path": "/config/.gitignore"}),
        ("Write", {"file_path": "/config/.gitattributes"}),
        ("Glob", {"pattern": "**/*.py"}),
        ("Grep", {"pattern": "../x", "path": "/state/src"}),
        ("mcp__hyperhive__send", {"to": "operator"}),
        ("mcp__docs__search", {}),
        ("Bash", {"command": "git status"}),
    ],
)
def test_a_tool_call_inside_the_work_tree_is_allowed(tool: str, arguments: dict[str, str]) -> None:
    decision = decide(tool, arguments)
    assert decision.allowed, decision.reason


@pytest.mark.parametrize(
    ("tool", "arguments", "why"),
    [
        ("Read", {"file_path": "/etc/passwd"}, "outside"),
        ("Read", {"file_path": "/state/../etc/passwd"}, "outside"),
        ("Read", {"file_path": "../etc/passwd"}, "outside"),
        ("Read", {"file_path": "/stateful/x"}, "outside"),
        ("Read", {"file_path": "/agents/smith/config/agent.nix"}, "outside"),
        ("Read", {"file_path": "/run/hive/agent.sock"}, "outside"),
        ("Write", {"file_path": "/config/.git/config"}, ".git"),
        ("Write", {"file_path": "/config/.git"}, ".git"),
        ("Write", {"file_path": "/config/sub/.GIT/hooks/x"}, "closed"),
        ("Write", {"file_path": "/home/agent/.bashrc"}, ".bashrc"),
        ("Write", {"file_path": "/home/agent/.profile"}, ".profile"),
        ("Write", {"file_path": "/home/agent/.gitconfig"}, ".gitconfig"),
        ("Edit", {"file_path": "/home/agent/.ssh/authorized_keys"}, ".ssh"),
        ("Edit", {"file_path": "/home/agent/.claude/settings.json"}, ".claude"),
        ("Edit", {"file_path": "/state/.claude.json"}, ".claude.json"),
        ("Edit", {"file_path": "/home/agent/.claude/projects/-state/6f1d/tool-results/b1.txt"}, ".claude"),
        ("Read", {"file_path": "/home/agent/.claude/projects/-state/6f1d.jsonl"}, ".claude"),
        ("Read", {"file_path": "/home/agent/.claude/projects/a/b/tool-results/../../x"}, ".claude"),
        ("Write", {"file_path": "/home/agent/.config/git/config"}, ".config/git"),
        ("Write", {"file_path": "/home/agent/.config/nix/nix.conf"}, ".config/nix"),
        ("Read", {}, "needs a path"),
        ("Read", {"file_path": ""}, "needs a path"),
        ("Read", {"file_path": 5}, "needs a path"),
        ("Read", {"file_path": "/state/\x00"}, "needs a path"),
        ("Read", {"file_path": "/state/" + "x" * 5000}, "needs a path"),
        ("Glob", {"pattern": "/etc/*"}, "leads out"),
        ("Glob", {"pattern": "../*"}, "leads out"),
        ("Glob", {"pattern": "{..,x}/*"}, "leads out"),
        ("Grep", {"pattern": "x", "glob": "../*"}, "leads out"),
        ("Grep", {"pattern": "x", "path": "/etc"}, "outside"),
        ("WebFetch", {"url": "http://x"}, "not in this agent's tools.allow"),
        ("Task", {}, "not in this agent's tools.allow"),
        ("mcp__docs__delete", {}, "not in this agent's tools.allow"),
        ("mcp__hyperhive", {}, "not in this agent's tools.allow"),
        ("Bash", {}, "empty"),
        ("Bash", {"command": ["git", "status"]}, "empty"),
        (None, {}, "no readable name"),
        ("Read", None, "no readable name"),
        ("Read", "x", "no readable name"),
    ],
)
def test_any_other_tool_call_is_refused(tool: object, arguments: object, why: str) -> None:
    decision = decide(tool, arguments)
    assert not decision.allowed
    assert why in decision.reason


def test_a_file_tool_that_the_spec_does_not_list_is_refused() -> None:
    assert not decide("Write", {"file_path": "/state/x"}, tools=("Read",)).allowed


def test_a_symbolic_link_out_of_the_work_tree_is_followed_and_refused(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "out").symlink_to("/etc")
    (work / "in").symlink_to(work / "real")
    (work / "git").symlink_to(work / ".git")
    guarded = Policy(Rules(tools=("Read", "Write"), roots=(str(work),)), _real)
    for name, allowed in {"out/passwd": False, "in/x": True, "git/config": False}.items():
        decision = asyncio.run(guarded.decide("Read", {"file_path": str(work / name)}, str(work)))
        assert decision.allowed is allowed, (name, decision.reason)


async def _real(paths: Sequence[str]) -> Sequence[str]:
    return [os.path.realpath(path) for path in paths]


def test_a_path_that_cannot_be_resolved_is_refused() -> None:
    async def broken(paths: Sequence[str]) -> Sequence[str]:
        raise OSError(paths)

    rules = Rules(tools=("Read",), roots=ROOTS)
    decision = asyncio.run(Policy(rules, broken).decide("Read", {"file_path": "/state/x"}, "/state"))
    assert not decision.allowed
    assert "could not decide" in decision.reason


def test_a_look_up_that_hangs_is_refused_before_the_hooks_own_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.policy.engine._DECIDE_S", 0.01)

    async def hanging(paths: Sequence[str]) -> Sequence[str]:
        await asyncio.Event().wait()
        return paths

    rules = Rules(tools=("Read",), roots=ROOTS)
    decision = asyncio.run(Policy(rules, hanging).decide("Read", {"file_path": "/state/x"}, "/state"))
    assert not decision.allowed


def test_the_tables_of_the_page_are_those_of_the_code() -> None:
    text = reference.PAGE.read_text()
    assert reference.page(text) == text, "run: python -m harness.policy.reference"
    assert "`busybox`" in text
    assert "`--checkpoint-action`" in text


@pytest.mark.parametrize(
    "command",
    [
        "timeout " + "rm " * 5000,
        "timeout " + "a " * 8000,
        "for a in 1 2 3 4 5 6 7 8; do for b in 1 2 3 4 5 6 7 8; do " + "ls x; " * 2000 + "done; done",
        "ls " + "a*" * 7000,
        "ls " + "é " * 5000,
        "{ " * 2000,
        "ls " + '"$x" ' * 2500,
        "ls | " * 3000 + "ls",
        "sed '" + "s/a/b/;" * 2000 + "e' x",
        "sed 's/" + "a\\" * 7000 + "' x",
        "ls '" + "ab " * 5000 + "'",
    ],
)  # fmt: skip
def test_no_text_takes_long_to_decide(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.policy.engine._THINK_S", 0.2)
    deny = tuple(f"*a*b*c*{number} *" for number in range(200))
    started = time.process_time()
    decision = decide_command(command, ("ls *", "timeout *", "sed *"), deny)
    assert time.process_time() - started < 1.5, decision.reason[:200]
