"""Risk classes of single settings, by example."""

from __future__ import annotations

import pytest

from harness.policy import launchers
from harness.policy.launching import launching
from harness.policy.patterns import Pattern
from harness.policy.words import known
from reconciler.model.changes import setting_changes
from reconciler.model.risk import bash_risk, family, highest, is_allowed_model, is_cheaper, model_risk
from reconciler.model.spec import Budget, Limits, Spec
from reconciler.model.states import Risk
from reconciler.model.text import visible


@pytest.mark.parametrize(
    "pattern",
    [
        "git *",
        "git:*",
        "Bash(git *)",
        "nix build .*",
        "ls",
        "cat *",
        "git commit -m *",
        "find *",
        "/usr/bin/rg *",
    ],
)
def test_plain_programs_are_elevated(pattern: str) -> None:
    assert bash_risk(pattern)[0] is Risk.ELEVATED


@pytest.mark.parametrize(
    "pattern",
    [
        "*", "Bash(*)", ":*", "git*", "*sh *", "python3 -c *", "/usr/bin/python3.11 *", "node:*", "sh -c *",
        "Bash(bash:*)", "env *", "xargs:*", "sudo *", "npm run *", "make *", "nix run *", "nix shell a#x",
        "find . -exec *", "git -c *", "git config *", "tar --checkpoint-action=* *", "LD_PRELOAD=* ls",
        "timeout 5 *", "awk:*", "echo $(*)", "cat <(*)", "FOO=* git *",
    ],
)  # fmt: skip
def test_wildcards_interpreters_and_launchers_are_dangerous(pattern: str) -> None:
    assert bash_risk(pattern)[0] is Risk.DANGEROUS


@pytest.mark.parametrize(
    ("before", "after", "risk"),
    [
        ("haiku", "opus", Risk.ELEVATED),
        ("opus", "haiku", Risk.LOW),
        ("opus", "opus", Risk.LOW),
        ("haiku", "claude-sonnet-5", Risk.ELEVATED),
        ("claude-opus-4-8", "sonnet", Risk.LOW),
        ("sonnet", "sonnet[1m]", Risk.ELEVATED),
        ("sonnet[1m]", "sonnet", Risk.LOW),
        ("opus", "claude-opus-4-8", Risk.ELEVATED),
        ("opus", "haiku[1m]", Risk.ELEVATED),
        ("opus", "unheard-of", Risk.ELEVATED),
        ("unheard-of", "haiku", Risk.ELEVATED),
    ],
)
def test_a_model_is_low_only_when_it_is_surely_not_dearer(before: str, after: str, risk: Risk) -> None:
    assert model_risk(before, after)[0] is risk
    assert not (is_cheaper(before, after) and is_cheaper(after, before))


def test_the_host_allows_models_by_the_names_it_serves_and_by_no_others() -> None:
    assert family("claude-opus-4-8[1m]") == "opus"
    assert not is_allowed_model("claude-opus-4-8", ["opus"])
    assert is_allowed_model("opus[1m]", ["opus"])
    assert is_allowed_model("special", ["special"])
    assert not is_allowed_model("opus", ["haiku", "claude-opus-4-8"])
    assert not is_allowed_model("octopus-1", ["opus"])


@pytest.mark.parametrize(
    ("option", "before", "after", "risk"),
    [
        ("limits", Limits(memoryMax="4G"), Limits(memoryMax="4097M"), Risk.ELEVATED),
        ("limits", Limits(memoryMax="4G"), Limits(memoryMax="4096M"), Risk.LOW),
        ("limits", Limits(cpuQuota="200%"), Limits(cpuQuota="1000%"), Risk.ELEVATED),
        ("limits", Limits(tasksMax=512), Limits(tasksMax=16), Risk.LOW),
        ("budget", Budget(usdPerDay=1), Budget(), Risk.ELEVATED),
        ("budget", Budget(), Budget(usdPerDay=1), Risk.LOW),
        ("budget", Budget(usdPerDay=1), Budget(usdPerDay=1.5), Risk.ELEVATED),
        ("models", [], ["opus"], Risk.LOW),
        ("models", ["opus"], [], Risk.ELEVATED),
        ("models", ["opus"], ["opus", "haiku"], Risk.ELEVATED),
    ],
)
def test_more_of_something_is_elevated_and_less_is_low(
    option: str, before: object, after: object, risk: Risk
) -> None:
    changes = setting_changes(
        Spec().model_copy(update={option: before}), Spec().model_copy(update={option: after})
    )
    assert [change.risk for change in changes] == [risk]


def test_the_highest_risk_of_none_is_low() -> None:
    assert highest([]) is Risk.LOW
    assert highest([Risk.ELEVATED, Risk.DANGEROUS, Risk.LOW]) is Risk.DANGEROUS


def test_what_does_not_show_is_made_visible() -> None:
    assert visible("a\u202eb\u200bc\0\x1b[1m\x7f\u00a0\ttab") == "a⟨U+202E⟩b⟨U+200B⟩c␀␛[1m␡⟨U+00A0⟩\ttab"
    assert visible("grüße → 日本") == "grüße → 日本"
    assert visible("\ufe0f\U000e0041\u3164\udc80") == "\ufe0f⟨U+E0041⟩⟨U+3164⟩⟨U+DC80⟩"


def test_a_pattern_that_spells_out_a_launcher_is_dangerous() -> None:
    """Such a form lets anything run: the operator must not read `elevated`."""
    patterns = [row.pattern for row in launchers.rows()]
    assert len(patterns) > 500
    assert [text for text in patterns if bash_risk(text)[0] is not Risk.DANGEROUS] == []


def test_what_the_policy_wants_to_be_named_is_named_by_the_rows_pattern_and_by_no_vague_one() -> None:
    vague = Pattern.parse("*")
    for row in launchers.rows():
        words = known(*row.pattern.removesuffix(" *").split())
        found = launching(words)
        assert found, row
        assert not any(vague.names(one.form, one.word) for one in found), row
        assert all(Pattern.parse(row.pattern).names(one.form, one.word) for one in found), row


@pytest.mark.parametrize(
    "pattern",
    [
        "git *",
        "git commit -s *",
        "git push -u origin *",
        "git log --output=*",
        "nix build .*",
        "rg *",
        "sed *",
        "nix store ls *",
        "npm ls",
        "cargo search *",
        "go version",
        "tee *",
        "git * &",
        "cat <<*",
    ],
)
def test_a_pattern_that_spells_out_no_launcher_is_elevated(pattern: str) -> None:
    assert bash_risk(pattern)[0] is Risk.ELEVATED
