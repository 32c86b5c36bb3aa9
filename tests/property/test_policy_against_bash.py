"""Real bash is the judge: whatever it runs and writes for a text that the policy allows must be allowed.

The judgement here is made from the words that bash itself came to, and knows nothing of the policy's own
parsing, patterns and tables.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from harness.policy.engine import Policy, Rules
from tests.support import attacks
from tests.support.bashworld import Run, World

pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bwrap is not installed")

FULL = os.environ.get("HYPOTHESIS_PROFILE") == "full"
TEXTS = int(os.environ.get("POLICY_TEXTS", "100000" if FULL else "1000"))
FIRST = int(os.environ.get("POLICY_SEED", "0"))
BATCH = 250
TREE = ("/state", "/config")
_GIT_SAFE = frozenset({"log", "status", "add", "commit", "stash", "stash@{0}", "fetch"})
_GIT_BAD = ("--exec", "--exec-path", "--upload-pack", "--ext-diff", "--config-env")


def is_allowed(run: Run, world: World) -> bool:
    """Whether a command that bash ran is allowed by `attacks.ALLOW` and `DENY`: by hand, for these alone."""
    name, *rest = run.words
    match name:
        case "git":
            while rest[:1] == ["-C"]:
                if not in_tree(world, run.folder, rest[1]):
                    return False
                rest = rest[2:]
            before = rest[: rest.index("--")] if "--" in rest else rest
            return not rest or (
                rest[0] in _GIT_SAFE
                and not any(
                    is_bad_of_git(world, run.folder, *pair)
                    for pair in zip(before, [*before[1:], ""], strict=True)
                )
            )
        case "echo":
            return True
        case "cat":
            return "deep" not in " ".join(rest)
        case "ls":
            return not rest
        case "rm":  # a link itself, not what it leads to
            words = [os.path.split(word) for word in rest if not word.startswith("-")]
            return all(last != ".git" and in_tree(world, run.folder, folder) for folder, last in words)
        case "tee":
            return all(in_tree(world, run.folder, word) for word in rest if not word.startswith("-"))
        case "sed":
            script = next((word for word in rest if not word.startswith("-")), "")
            files = [word for word in rest if not word.startswith("-")][1:]
            edits = any(word.startswith("-") and "i" in word for word in rest)
            return not set("eEwWrRF") & set(script) and not (
                edits and not all(in_tree(world, run.folder, one) for one in files)
            )
    return False


def is_bad_of_git(world: World, folder: str, word: str, following: str) -> bool:
    """Whether a word behind the subcommand starts a program, or writes where nothing may be written."""
    stem, equals, value = word.partition("=")
    if len(stem) > 2 and "--output".startswith(stem):
        return not in_tree(world, folder, value if equals else following)
    return re.match("[a-z]+::", word) is not None or (
        len(stem) > 2 and any(bad.startswith(stem) for bad in _GIT_BAD)
    )


def in_tree(world: World, folder: str, path: str) -> bool:
    """Whether a path lies in the work tree, as written and with its links followed."""
    whole = os.path.join(folder, path)  # noqa: PTH118 - `..` stays
    for one in (os.path.normpath(whole), world.real(whole)):
        parts = one.split("/")
        if not one.startswith(TREE) or {".git", ".bashrc"} & set(parts):
            return False
    return True


def decide(texts: Sequence[str], world: World) -> list[bool]:
    """The policy's word on each."""

    async def resolve(paths: Sequence[str]) -> Sequence[str]:
        return [world.real(path) for path in paths]

    rules = Rules(
        allow=attacks.ALLOW, deny=attacks.DENY, roots=TREE, work_tree=TREE, values={"HOME": "/home/agent"}
    )
    policy = Policy(rules, resolve)

    async def all_of_them() -> list[bool]:
        found = []
        for text in texts:
            decision = await policy.decide("Bash", {"command": text}, "/state")
            assert "could not decide" not in decision.reason, (text, decision.reason)
            found.append(decision.allowed)
        return found

    return asyncio.run(all_of_them())


@pytest.mark.timeout(7200 if FULL else 240)
def test_whatever_bash_runs_and_writes_for_an_allowed_text_is_allowed(tmp_path: Path) -> None:
    allowed = ran = 0
    wrong: list[object] = []
    for start in range(FIRST, FIRST + TEXTS, BATCH):
        world = World(tmp_path / f"world-{start}")
        texts = [attacks.text(seed) for seed in range(start, start + BATCH)]
        passed = [text for text, is_good in zip(texts, decide(texts, world), strict=True) if is_good]
        traces = world.run(passed)
        for text, runs in zip(passed, traces, strict=True):
            wrong += [(text, run) for run in runs if not is_allowed(run, world)]
            ran += len(runs)
        if damage := world.damage():
            culprits = [text for text in passed if _harms(text, tmp_path / f"one-{hash(text)}")]
            wrong.append((damage, culprits or passed))
        allowed += len(passed)
        shutil.rmtree(world.root)
    print(f"{TEXTS} texts, {allowed} allowed, {ran} commands run")
    assert not wrong, wrong[:20]
    assert allowed > TEXTS / 8
    assert ran > allowed / 2


def _harms(text: str, folder: Path) -> bool:
    world = World(folder)
    world.run([text])
    return bool(world.damage())


@pytest.mark.parametrize(
    "text", ["id", "/evil", "./evil", "echo x > /etc/x", "echo x >> .git/config", "git push; ls"]
)
def test_the_judge_sees_what_is_forbidden(tmp_path: Path, text: str) -> None:
    """Else the test above could not fail."""
    world = World(tmp_path / "world")
    (runs,) = world.run([text])
    assert world.damage() or not all(is_allowed(run, world) for run in runs)
