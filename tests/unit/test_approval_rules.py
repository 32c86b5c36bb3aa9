"""Rules of a spec that need the host and the hive, and how text diffs become objects."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.approvals import hostids, patches
from reconciler.approvals.rules import RANGE, Facts, Reserved, explain, lowest_free, range_fault, refusals
from reconciler.effects.protocols import RawFileDiff
from reconciler.model.names import AgentName
from reconciler.model.spec import Spec

START = 16 * RANGE
FACTS = Facts(
    agent=AgentName("smith"),
    uid_base=None,
    taken=frozenset({START}),
    uids=(START, START + 4 * RANGE),
    reserved=(Reserved(START + RANGE + 5, 1, "/etc/passwd (bob)"),),
    other_manager=AgentName("hm1nd"),
    allowed_models=("haiku", "opus"),
    prompt="be kind",
)


def why(facts: Facts = FACTS, **options: Any) -> str:
    return explain(refusals(Spec.model_validate(options), facts))


def test_the_defaults_are_taken() -> None:
    assert why() == ""
    assert why(prompt="prompt.md", uidMap={"base": START + 2 * RANGE}, models=["opus", "haiku"]) == ""


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"model": "sonnet"}, "the model 'sonnet' is not served by this host (allowed: haiku, opus)"),
        ({"models": ["haiku", "fable"]}, "hyperhive.models: the model 'fable'"),
        ({"models": ["opus"]}, "the agent's own model 'haiku' is not among them"),
        ({"role": "manager"}, "hyperhive.role: a hive has at most one manager, and hm1nd is it"),
        ({"uidMap": {"base": START}}, "another agent has it"),
        ({"uidMap": {"base": START + RANGE}}, "it overlaps with /etc/passwd (bob)"),
        ({"uidMap": {"base": START + 4 * RANGE}}, "outside of the host's uidRange"),
        ({"uidMap": {"base": RANGE}}, "outside of the host's uidRange"),
    ],
)  # fmt: skip
def test_each_rule_names_option_and_reason(options: dict[str, Any], text: str) -> None:
    assert text in why(**options)


def test_the_range_of_an_agent_is_fixed() -> None:
    mine = replace(FACTS, uid_base=START + 3 * RANGE)
    assert why(mine, uidMap={"base": START + 3 * RANGE}) == ""
    assert "fixed when it is created" in why(mine, uidMap={"base": START + 2 * RANGE})


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        (None, "there is no file prompt.md in the commit"),
        ("x" * 65537, "too long"),
        ("a\0b", "not UTF-8 text"),
        ("a\ufffdb", "not UTF-8 text"),
    ],
)
def test_the_prompt_is_a_text_of_the_commit(prompt: str | None, text: str) -> None:
    assert text in why(replace(FACTS, prompt=prompt), prompt="prompt.md")


def test_all_reasons_are_told_at_once() -> None:
    assert len(why(model="sonnet", role="manager", uidMap={"base": START}).splitlines()) == 3


def test_the_lowest_free_range_is_nobody_elses() -> None:
    assert lowest_free(FACTS) == START + 2 * RANGE
    full = replace(FACTS, taken=frozenset(range(START, START + 4 * RANGE, RANGE)))
    assert lowest_free(full) is None


@given(
    st.frozensets(st.integers(16, 20)),
    st.lists(st.tuples(st.integers(15 * RANGE, 21 * RANGE), st.integers(1, 2 * RANGE)), max_size=3),
)
def test_what_is_assigned_never_overlaps(taken: frozenset[int], reserved: list[tuple[int, int]]) -> None:
    facts = replace(
        FACTS,
        taken=frozenset(number * RANGE for number in taken),
        reserved=tuple(Reserved(first, count, "x") for first, count in reserved),
    )
    base = lowest_free(facts)
    if base is None:
        assert all(range_fault(number, facts) for number in range(*facts.uids, RANGE))
        return
    mine = range(base, base + RANGE)
    assert base not in facts.taken
    assert all(first + count <= mine.start or first >= mine.stop for first, count in reserved)


def test_the_hosts_ids_are_read_from_its_files(tmp_path: Path) -> None:
    (tmp_path / "passwd").write_text("root:x:0:0::/:/bin/sh\nfar:x:1200000:1200001::/:/bin/sh\njunk\n\n")
    (tmp_path / "group").write_text("far:x:1200001:\nbad:x:x:\n")
    (tmp_path / "subuid").write_text("bob:1100000:65536\n# a comment\nbob:x:y\n")
    found = hostids.reserved(tmp_path)
    assert [(one.first, one.count) for one in found] == [(1100000, 65536), (1200000, 1), (1200001, 1)]
    assert found[0].source == f"{tmp_path}/subuid (bob)"


# ------------------------------------------------------------------------------------------------ diffs
def raw(patch: str, **fields: Any) -> RawFileDiff:
    values: dict[str, Any] = {"path": "a.nix", "old_path": None, "status": "modified", "binary": False}
    return RawFileDiff(patch=patch, **{**values, "too_large": False, **fields})


PATCH = """diff --git a/a.nix b/a.nix
old mode 100644
new mode 100755
--- a/a.nix
+++ b/a.nix
@@ -1,2 +1,3 @@ head
 same
-old\u202e
+new\x1b[2J
+more
@@ -10 +11 @@
--- a line that began with two signs
+++ and one with two
\\ No newline at end of file
"""


def test_lines_are_numbered_and_made_visible() -> None:
    files, truncated = patches.file_diffs([raw(PATCH)])
    (file,) = files
    assert (file.added, file.deleted, truncated) == (3, 2, False)
    assert file.note == "mode 100644 → 100755"
    assert [(line.kind, line.old, line.new, line.text) for line in file.hunks[0].lines] == [
        ("context", 1, 1, "same"),
        ("del", 2, None, "old⟨U+202E⟩"),
        ("add", None, 2, "new␛[2J"),
        ("add", None, 3, "more"),
    ]
    assert [line.text for line in file.hunks[1].lines] == [
        "-- a line that began with two signs",
        "++ and one with two (no newline at the end)",
    ]
    assert (file.hunks[1].lines[0].old, file.hunks[1].lines[1].new) == (10, 11)


def test_what_is_not_shown_is_said() -> None:
    files, truncated = patches.file_diffs(
        [
            raw("", binary=True),
            raw("", too_large=True),
            raw("", status="renamed", old_path="b\u202e.nix"),
            raw("diff --git a/l b/l\nnew file mode 120000\n@@ -0,0 +1 @@\n+x\n", status="added"),
        ]
    )
    assert [file.note for file in files] == [
        "binary: not shown", "too large to be shown", "moved, its content is the same", "a symbolic link",
    ]  # fmt: skip
    assert files[2].old_path == "b⟨U+202E⟩.nix"
    assert truncated


def test_lines_are_bounded_per_file_and_in_all_and_in_length() -> None:
    body = "".join(f"+{'x' * 3000}\n" for _ in range(3000))
    files, truncated = patches.file_diffs([raw(f"@@ -0,0 +1,3000 @@\n{body}") for _ in range(4)])
    counts = [sum(len(hunk.lines) for hunk in file.hunks) for file in files]
    assert counts == [2000, 2000, 1000, 0]
    assert truncated
    assert all("cut: too many lines" in file.note for file in files)
    assert files[0].added == 3000
    assert len(files[0].hunks[0].lines[0].text) < 2100


@given(st.text(max_size=200))
def test_no_patch_makes_the_parser_fail(text: str) -> None:
    patches.file_diffs([raw(text), raw(f"@@ -1 +1 @@\n{text}")])
