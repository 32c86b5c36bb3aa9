"""Which shell commands and paths the policy lets through: a table, written by hand."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from harness.policy.commands import Unreadable, simple_commands
from harness.policy.engine import Decision, Policy, Rules
from harness.policy.patterns import Pattern

ALLOW = (
    "git *",
    "nix build .*",
    "ls",
    "Bash(cat *)",
    "rg:*",
    "find *",
    "tar *",
    "sed *",
    "git bisect run make",
)
DENY = ("git push *", "cat *secret*")


async def as_it_is(path: str) -> str:
    return path


def policy(allow: tuple[str, ...] = ALLOW, deny: tuple[str, ...] = DENY) -> Policy:
    return Policy(Rules(allow=allow, deny=deny, tools=("Read", "Edit", "Write", "Glob", "Grep")), as_it_is)


ALLOWED = [
    "git status",
    "git",
    "git  log   --oneline",
    "git log -n 2",
    "git log --oneline | cat -n",
    "git add . && git commit -m 'a; b'",
    "git status; git log",
    "git status;",
    "git status\ngit log",
    "git status || ls",
    "git log |& cat -",
    'git commit -m "it\'s \\"quoted\\""',
    "git commit -m 'two\nlines'",
    "git commit -m x'y'\"z\"",
    "git commit -m ''",
    "git show HEAD~2 HEAD^ HEAD@{1} v1..v2",
    "git stash drop stash@{0}",
    "git log # why not",
    "# first a word\ngit log",
    "git status 2>&1",
    "git status 2>/dev/null",
    "git status >/dev/null 2>&1",
    "git status &>/dev/null",
    "git log < /dev/null",
    "git status 2>&1 | cat -",
    "git -C /config commit -m x",
    "git apply /state/p",
    "git cherry-pick --strategy-option=ours x",
    "git --no-pager log",
    "git log --format='%H %s' -- 'a b.txt'",
    "git log -S'!important'",
    "git commit -m 'costs $5 and `x`'",
    "git commit -m Überschrift",
    "ls",
    "cat a.txt",
    "cat 'a;b'",
    "rg",
    "rg -n needle .",
    "nix build .",
    "nix build .#hive",
    "nix build .#a --impure",
    "find . -name '*.py'",
    "sed -n 1,5p a",
    "git bisect run make",
]

REFUSED = [
    ("", "empty"),
    ("   ", "empty"),
    ("touch zz", "matches no allowed pattern"),
    ("gitx", "matches no allowed pattern"),
    ("'git status'", "matches no allowed pattern"),
    ("ls -l", "matches no allowed pattern"),
    ("nix build", "matches no allowed pattern"),
    ("nix build /x", "matches no allowed pattern"),
    ("id", "matches no allowed pattern"),
    ("echo hi", "matches no allowed pattern"),
    ("cd /tmp && git status", "'cd /tmp' matches no allowed pattern"),
    ("git status && touch zz", "'touch zz' matches no"),
    ("git status; touch zz", "'touch zz' matches no"),
    ("git status | sh", "'sh' matches no"),
    ("git status\ntouch zz", "'touch zz' matches no"),
    ("git status || touch zz", "'touch zz' matches no"),
    ("git log # a\ntouch zz", "'touch zz' matches no"),
    ("git status | tee out", "'tee out' matches no"),
    ("git push", "denied pattern 'git push *'"),
    ("git push origin main", "denied pattern"),
    ("git status && git push", "denied pattern"),
    ("cat my-secret.txt", "denied pattern"),
    ("cat x secret y", "denied pattern"),
    ("git $(id)", "command substitution"),
    ("git `id`", "command substitution"),
    ('git log "$(id)"', "command substitution"),
    ("git log $HOME", "variable"),
    ("git log ${HOME}", "variable"),
    ('git log "$HOME"', "variable"),
    ("git log $((1+1))", "not allowed"),
    ("git log <(id)", "process substitution"),
    ("git log $'a'", "$'…'"),
    ('git log $"a"', "not allowed"),
    ("git add *.py", "file-name pattern"),
    ("git add a?", "file-name pattern"),
    ("git add [ab]", "file-name pattern"),
    ("git add {a,b}", "single quotes"),
    ("git add {a..c}", "single quotes"),
    ("git add ~", "unquoted ~"),
    ("git add x=~/y", "unquoted ~"),
    ("git add a\\ b", "backslash"),
    ("git\\ status", "backslash"),
    ("git log \\\n -1", "one"),
    ("git status > out", "redirection"),
    ("git status >> out", "redirection"),
    ("git status > /dev/null > out", "redirection"),
    ("git status 2> err", "redirection"),
    ("git status &> both", "redirection"),
    ("git status >&3", "redirection"),
    ("git status 3>&1", "redirection"),
    ("git log < /etc/passwd", "redirection"),
    ("> out", "redirection"),
    ("cat <<EOF\nhi\nEOF", "here-document"),
    ("cat <<'EOF'\nhi\nEOF", "here-document"),
    ("cat <<< hi", "here-string"),
    ("FOO=1 git status", "assignment"),
    ("GIT_PAGER=id git log", "assignment"),
    ("FOO=1", "assignment"),
    ("export FOO=1", "export"),
    ("git status &", "background"),
    ("git status & git log", "background"),
    ("(git status)", "subshell"),
    ("{ git status; }", "group"),
    ("if true; then git status; fi", "if"),
    ("for i in 1; do git status; done", "loop"),
    ("while git status; do git log; done", "loop"),
    ("case x in x) git status;; esac", "case"),
    ("git() { id; }", "function"),
    ("function git { id; }", "function"),
    ("! git status", "negation"),
    ("[ -f x ]", "test"),
    ("[[ -f x ]]", "test"),
    ("time git status", "syntax"),
    ("coproc git status", "syntax"),
    ("git status\rtouch zz", "control character"),
    ("git status\x00", "control character"),
    ("git\u00a0status", "unusual blank"),
    ("git 'unclosed", "not valid"),
    ("git status &&", "not valid"),
    ("git status )", "not valid"),
    ("git log '" + "x" * 20000 + "'", "longer than"),
    ("/usr/bin/git status", "matches no allowed pattern"),
    ("./git status", "matches no allowed pattern"),
    ("env git status", "matches no allowed pattern"),
    ("bash -c 'git status'", "matches no allowed pattern"),
    ("timeout 5 git status", "matches no allowed pattern"),
    ("git -c core.pager=id log", "'-c'"),
    ("git -c alias.x='!touch zz' x", "-c"),
    ("git -ccore.pager=id log", "-ccore.pager=id"),
    ("git --config-env=core.pager=X log", "--config-env"),
    ("git --exec-path=/tmp status", "--exec-path=/tmp"),
    ("git --git-dir=/tmp/x log", "--git-dir"),
    ("git config alias.x '!touch zz'", "'config'"),
    ("git x", "can start any other program ('x')"),
    ("git -C /config x", "('x')"),
    ("git bisect run sh", "bisect"),
    ("git rebase -x 'touch zz' HEAD~1", "-x"),
    ("git rebase --exec=id HEAD~1", "--exec=id"),
    ("git grep -nO x", "-nO"),
    ("git archive HEAD -o ../x.tar", "-o"),
    ("git archive --out=x HEAD", "--out=x"),
    ("git log --output=x", "--output=x"),
    ("git clone -c core.fsmonitor=id . x", "-c"),
    ("git ls-remote --exec='touch zz; git-upload-pack' /config", "--exec=touch zz"),
    ("git reflog --format='[diff] external = id' --output=.git/config", "--output=.git/config"),
    ("git diff-index --outp .git/config HEAD", "--outp"),
    ("git whatchanged --ext-diff", "--ext-diff"),
    ("git init --separate-git-dir=/state/settings x", "--separate-git-dir"),
    ("git clone --sep /state/settings /config x", "--sep"),
    ("git init --bare x", "--bare"),
    ("git clone --mirror /config x", "--mirror"),
    ("git -C x --bare diff", "--bare"),
    ("git -C /config/.git apply /state/p", "'/config/.git apply'"),
    ("git -C x/.GIT log", "x/.GIT"),
    ("git -C link apply /state/p", "'apply'"),
    ("git cherry-pick --strategy=foo x", "--strategy=foo"),
    ("cd /config/.git && git apply /state/p", "'cd /config/.git'"),
    ("git fetch ext::sh", "ext::sh"),
    ("git submodule foreach id", "submodule"),
    ("git difftool", "difftool"),
    ("find . -exec touch zz ';'", "-exec"),
    ("find . -delete", "-delete"),
    ("tar -xIfoo a.tar", "-xIfoo"),
    ("tar xIf foo a.tar", "xIf"),
    ("tar -xf a --to-comm=id", "--to-comm=id"),
    ("tar -xf a --checkpoint-action=exec=id", "--checkpoint-action=exec=id"),
]


@pytest.mark.parametrize("command", ALLOWED)
def test_an_allowed_command_is_allowed(command: str) -> None:
    decision = policy().decide_command(command)
    assert decision.allowed, decision.reason


@pytest.mark.parametrize(("command", "why"), REFUSED)
def test_a_refused_command_is_refused_with_its_reason(command: str, why: str) -> None:
    decision = policy().decide_command(command)
    assert not decision.allowed
    assert why in decision.reason


def test_a_refusal_names_the_patterns_that_there_are() -> None:
    reason = policy().decide_command("touch zz").reason
    assert "git *, nix build .*, ls" in reason
    assert "denied: git push *" in reason


@pytest.mark.parametrize(
    ("pattern", "command"),
    [
        ("git -c *", "git -c core.pager=id log"),
        ("git config *", "git config user.name x"),
        ("find * -exec *", "find . -exec ls '{}' ';'"),
        ("env *", "env"),
        ("sh -c *", "sh -c 'anything at all'"),
        ("/opt/tool/run *", "/opt/tool/run x"),
        ("git log --output=*", "git log --output=x"),
    ],
)
def test_a_launcher_is_allowed_by_a_pattern_that_names_its_form(pattern: str, command: str) -> None:
    decision = policy((pattern,), ()).decide_command(command)
    assert decision.allowed, decision.reason


@pytest.mark.parametrize("command", ["env ls", "sh -c id", "git -c a=b log", "/bin/ls", "git push"])
def test_a_star_alone_allows_any_program_but_names_no_launcher_and_no_path(command: str) -> None:
    everything = policy(("*",), ("git push *",))
    assert everything.decide_command("touch zz").allowed
    assert not everything.decide_command(command).allowed


def test_a_deny_pattern_also_catches_a_program_called_by_its_path() -> None:
    assert not policy(("/bin/rm *",), ("rm *",)).decide_command("/bin/rm x").allowed


def test_gits_own_folder_is_no_place_to_go_unless_a_pattern_says_so() -> None:
    assert policy(("cd *",), ()).decide_command("cd /config").allowed
    assert not policy(("cd *",), ()).decide_command("cd /config/.git").allowed
    assert policy(("cd /config/.git",), ()).decide_command("cd /config/.git").allowed


def test_no_pattern_means_no_shell() -> None:
    assert "no shell" in policy((), ()).decide_command("git status").reason


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
    assert Pattern.parse(text).allows(words) is allows


def test_words_are_what_bash_would_make_of_them() -> None:
    (command,) = simple_commands("""git commit -m "a \\"b\\" \\n" 'c $d' e'f'"g" '' 2>&1""")
    assert command.words == ("git", "commit", "-m", 'a "b" \\n', "c $d", "efg", "")


def test_a_deeply_nested_text_is_unreadable_and_no_crash() -> None:
    with pytest.raises(Unreadable):
        simple_commands("git log" + " | ( git log" * 300 + " )" * 300)


# --------------------------------------------------------------------------------------------- other tools

ROOTS = ("/state", "/config", "/home/agent")


def decide(
    tool: object, arguments: object, *, tools: tuple[str, ...] = ("Read", "Edit", "Write", "Glob", "Grep")
) -> Decision:
    rules = Rules(allow=("git *",), tools=tools, roots=ROOTS, mcp_tools=frozenset({"mcp__docs__search"}))
    return asyncio.run(Policy(rules, as_it_is).decide(tool, arguments, "/state"))


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


async def _real(path: str) -> str:
    return os.path.realpath(path)


def test_a_path_that_cannot_be_resolved_is_refused() -> None:
    async def broken(path: str) -> str:
        raise OSError(path)

    rules = Rules(tools=("Read",), roots=ROOTS)
    decision = asyncio.run(Policy(rules, broken).decide("Read", {"file_path": "/state/x"}, "/state"))
    assert not decision.allowed
    assert "could not decide" in decision.reason


def test_a_look_up_that_hangs_is_refused_before_the_hooks_own_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.policy.engine._DECIDE_S", 0.01)

    async def hanging(path: str) -> str:
        await asyncio.Event().wait()
        return path

    rules = Rules(tools=("Read",), roots=ROOTS)
    decision = asyncio.run(Policy(rules, hanging).decide("Read", {"file_path": "/state/x"}, "/state"))
    assert not decision.allowed
