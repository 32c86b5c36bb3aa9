"""The policy never raises, never allows what no pattern names, and reads words as bash does."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Sequence

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from harness.policy.commands import Unreadable, read, simple_commands
from harness.policy.engine import FLOW, Policy, Rules
from harness.policy.patterns import Pattern
from harness.policy.words import known

FULL = os.environ.get("HYPOTHESIS_PROFILE") == "full"

# pieces from which both well-formed and broken shell texts come out
_PIECES = st.sampled_from(
    [
        *(
            "git",
            "status",
            "log",
            "touch",
            "x",
            "-c",
            "a=b",
            "1",
            "2",
            "HEAD~1",
            "ü",
            "{}",
            "@{1}",
            "#",
            "# c",
            "~",
            "!",
        ),
        *(
            " ",
            " ",
            " ",
            "\t",
            "\n",
            "\r",
            "\u00a0",
            "\\",
            "\\ ",
            "\\\n",
            "'",
            '"',
            "'a b'",
            '"a b"',
            "$",
            "$x",
            "${x}",
            "`",
        ),
        *(
            ";",
            "&&",
            "||",
            "|",
            "|&",
            "&",
            ">",
            ">>",
            "<",
            "<<EOF\n",
            "<<<",
            "2>&1",
            ">/dev/null",
            "(",
            ")",
            "{",
            "}",
            "[",
            "]",
        ),
        *(
            "*",
            "?",
            "$(",
            "<(",
            "if",
            "then",
            "fi",
            "do",
            "done",
            "for",
            "in",
            "time",
            "[[",
            "]]",
            "EOF",
            "case",
            "esac",
            "=",
        ),
    ]
)
# mostly readable ones: fragments of words, blanks, and more commands
_MILD = st.sampled_from(
    [
        *(
            "a",
            "-x",
            "--o=a",
            "HEAD~1",
            "HEAD^",
            "@{1}",
            "x=y",
            "v1..v2",
            "é",
            "%s",
            ",",
            ":",
            "!",
            "{}",
            "#",
        ),
        *(
            "'b c'",
            '"d e"',
            "''",
            '""',
            "'\"'",
            '"\'"',
            r'"\$x \" \\ \n"',
            r"'$x `y` \'",
            "'#'",
            "'\n'",
            '"\n"',
        ),
        *(" ", " ", " ", " ", "  ", "\t", "; echo ", " && echo ", "\necho ", " # c\necho ", " 2>&1"),
        *("~", "*", "$x", "\\"),
    ]
)
_TEXTS = st.lists(_PIECES, max_size=14).map("".join) | st.text(max_size=60)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=8,
)
_PATTERNS = st.lists(
    st.sampled_from(["git *", "git:*", "ls", "Bash(cat *)", "nix build .*", "*"]), max_size=3
)


async def _as_it_is(paths: Sequence[str]) -> Sequence[str]:
    return paths


def _decide(text: str, allow: tuple[str, ...], deny: tuple[str, ...] = ()) -> bool:
    policy = Policy(Rules(allow=allow, deny=deny, roots=("/state",)), _as_it_is)
    return asyncio.run(policy.decide_command(text)).allowed


def _policy(allow: tuple[str, ...]) -> Policy:
    return Policy(Rules(allow=allow, tools=("Read", "Write", "Glob", "Grep"), roots=("/state",)), _as_it_is)


@settings(max_examples=100_000 if FULL else 1000)
@given(
    tool=st.sampled_from(["Bash", "Read", "Write", "Glob", "Grep", "mcp__hyperhive__send", "Task"]) | _JSON,
    arguments=st.fixed_dictionaries(
        {"command": _TEXTS | _JSON, "file_path": _TEXTS | _JSON, "pattern": _TEXTS}
    )
    | _JSON,
    allow=_PATTERNS,
)
def test_a_decision_never_raises_and_always_has_a_reason(
    tool: object, arguments: object, allow: list[str]
) -> None:
    decision = asyncio.run(_policy(tuple(allow)).decide(tool, arguments, "/state"))
    assert decision.reason


@given(text=_TEXTS)
def test_a_command_whose_name_no_pattern_lists_is_never_allowed(text: str) -> None:
    if _decide(text, ("git *", "ls")):
        assert {words[0] for words in simple_commands(text)} <= {"git", "ls"} | FLOW


@given(text=_TEXTS)
def test_denying_takes_away_and_never_adds(text: str) -> None:
    if _decide(text, ("git *", "ls *"), ("git log *", "ls *x*")):
        assert _decide(text, ("git *", "ls *"))


@given(
    words=st.lists(
        st.text(st.characters(blacklist_categories=("Cs", "Cc", "Zs", "Zl", "Zp")), min_size=1),
        min_size=1,
        max_size=5,
    )
)
def test_words_in_single_quotes_are_read_as_they_are(words: list[str]) -> None:
    assume(not any("'" in word for word in words))
    (found,) = simple_commands("git " + " ".join(f"'{word}'" for word in words))
    assert found == ("git", *words)


@given(pattern=st.text(max_size=20), words=st.lists(st.text(max_size=8), min_size=1, max_size=4))
def test_matching_never_raises_and_what_is_allowed_by_a_pattern_is_denied_by_it(
    pattern: str, words: list[str]
) -> None:
    parsed = Pattern.parse(pattern)
    if parsed.allows(known(*words)):
        assert parsed.denies(known(*words))


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_what_is_readable_is_read_by_bash_in_the_same_way() -> None:
    """A differential test: every accepted text with the one command `echo` is given to bash itself, which
    prints its words. Nothing else can run: the name is checked first, and bash has no PATH and is
    restricted."""
    seen: list[tuple[str, tuple[tuple[str, ...], ...]]] = []

    @given(text=st.lists(_MILD, max_size=10).map(lambda pieces: "echo " + "".join(pieces)))
    def collect(text: str) -> None:
        try:
            reading = read(text)
        except Unreadable:
            return
        words = [word for command in reading.commands for word in command.words]
        names = {command.words[0].text for command in reading.commands}
        if names == {"echo"} and "|" not in text and all(word.is_known for word in words):
            seen.append((text, simple_commands(text)))

    collect()
    assert len(seen) > 10, "some of them are readable"
    script = 'echo() { printf \'%s\\0\' "$#" "$@"; }\n'
    for text, commands in seen[:300]:
        done = subprocess.run(
            ["/bin/bash", "--norc", "--noprofile", "-r", "-c", script + text],
            env={"PATH": "/nowhere"},
            capture_output=True,
            timeout=10,
            check=False,
        )
        fields = done.stdout.decode().split("\0")
        if "/dev/null" in text:
            continue  # restricted bash may not redirect
        expected = [field for words in commands for field in (str(len(words) - 1), *words[1:])]
        assert fields[:-1] == expected, (text, done.stderr)
