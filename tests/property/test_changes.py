"""What a proposal means: laws of the diff of settings, and of its risks."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from reconciler.model.changes import (
    FILES_SHOWN,
    OPTIONS,
    FileId,
    file_changes,
    overall,
    setting_changes,
)
from reconciler.model.risk import bash_risk
from reconciler.model.spec import (
    BashPolicy,
    Budget,
    Compact,
    Limits,
    McpServer,
    NixAccess,
    Notes,
    SendPolicy,
    Spec,
    ToolsPolicy,
    UidMap,
)
from reconciler.model.states import Risk

MODELS = ["haiku", "sonnet", "opus", "fable", "claude-opus-4-8", "claude-haiku-4-5[1m]", "somebody-else"]
PATTERNS = ["git *", "git:*", "*", "Bash(python3 *)", "nix build .*", "xargs *", "make", "A=1 ls", "ls"]
NAMES = ["manager", "operator", "smith", "*"]


def lists(values: list[str]) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(values), unique=True, max_size=4)


SPECS = st.builds(
    Spec,
    model=st.sampled_from(MODELS),
    models=lists(MODELS),
    role=st.sampled_from(["agent", "manager"]),
    bash=st.builds(BashPolicy, allow=lists(PATTERNS), deny=lists(PATTERNS)),
    tools=st.builds(ToolsPolicy, allow=lists(["Read", "Edit", "Glob"]), server=lists(["web_search"])),
    uidMap=st.builds(UidMap, base=st.sampled_from([None, 1_048_576])),
    send=st.builds(SendPolicy, allow=lists(NAMES)),
    budget=st.builds(
        Budget, usdPerDay=st.sampled_from([None, 1.0, 2.0]), tokensPerTurn=st.sampled_from([None, 10, 20])
    ),
    mcpServers=st.dictionaries(
        st.sampled_from(["one", "two"]),
        st.builds(McpServer, command=st.sampled_from(["/a", "/b"])),
        max_size=2,
    ),
    limits=st.builds(
        Limits,
        memoryMax=st.sampled_from(["1G", "4G", "4096M", "1T"]),
        cpuQuota=st.sampled_from(["50%", "200%"]),
        tasksMax=st.sampled_from([16, 512]),
        diskMax=st.sampled_from(["10G", "1K"]),
    ),
    prompt=st.sampled_from([None, "prompt.md"]),
    compact=st.builds(Compact, atTokens=st.sampled_from([0.5, 0.75])),
    notes=st.builds(Notes, maxBytes=st.sampled_from([1024, 32768])),
    nix=st.builds(NixAccess, enable=st.booleans()),
)
# Options that are lists of what is given to the agent: an item more is more.
GIVEN: dict[str, list[str]] = {
    "bash.allow": ["rm *", "curl *"],
    "tools.allow": ["Grep", "Write"],
    "tools.server": ["code_execution"],
    "send.allow": ["scout"],
}


def with_more(spec: Spec, option: str, item: str) -> Spec:
    raw: dict[str, Any] = spec.model_dump()
    group, key = option.split(".")
    raw[group][key] = [*raw[group][key], item]
    return Spec.model_validate(raw)


@given(SPECS)
def test_equal_specs_have_no_changes(spec: Spec) -> None:
    assert setting_changes(spec, spec) == ()


@given(SPECS, SPECS)
def test_the_way_back_has_the_same_options_with_before_and_after_swapped(one: Spec, two: Spec) -> None:
    there = [(change.option, change.before, change.after) for change in setting_changes(one, two)]
    back = [(change.option, change.after, change.before) for change in setting_changes(two, one)]
    assert there == back


@given(SPECS, SPECS)
def test_every_difference_is_told(one: Spec, two: Spec) -> None:
    options = {change.option for change in setting_changes(one, two)}
    for key, value in one.model_dump().items():
        if value != getattr(two, key) and value != two.model_dump()[key]:
            assert any(option == key or option.startswith(f"{key}.") for option in options)


@given(SPECS, SPECS)
def test_changes_are_text_of_known_options_with_a_reason(one: Spec, two: Spec) -> None:
    for change in setting_changes(one, two):
        assert change.option in OPTIONS or change.option.startswith("mcpServers.")
        assert change.reason
        for text in (change.before, change.after):
            assert text is None or (text.isascii() and json.loads(text) is not ...)


@given(SPECS, st.sampled_from([(option, item) for option, items in GIVEN.items() for item in items]))
def test_giving_something_is_never_low(spec: Spec, given_: tuple[str, str]) -> None:
    option, item = given_
    more = with_more(spec, option, item)
    assert overall(setting_changes(spec, more)) is not Risk.LOW
    assert overall(setting_changes(more, spec)) is Risk.LOW


@given(SPECS)
def test_becoming_manager_is_dangerous(spec: Spec) -> None:
    before = spec.model_copy(update={"role": "agent"})
    after = spec.model_copy(update={"role": "manager"})
    assert overall(setting_changes(before, after)) is Risk.DANGEROUS


@given(SPECS)
def test_a_new_agent_shows_its_model_and_role_and_what_is_not_the_default(spec: Spec) -> None:
    changes = setting_changes(None, spec)
    assert {"model", "role"} <= {change.option for change in changes}
    assert all(change.before is None for change in changes)
    assert overall(changes) == overall(setting_changes(Spec(), spec))


@given(SPECS, st.sampled_from(["one", "two"]), st.sampled_from(["/a", "/b"]))
def test_a_server_is_dangerous_unless_it_goes(spec: Spec, key: str, command: str) -> None:
    server = McpServer(command=command)
    after = spec.model_copy(update={"mcpServers": {**spec.mcpServers, key: server}})
    if spec.mcpServers.get(key) != server:
        assert overall(setting_changes(spec, after)) is Risk.DANGEROUS
    without = spec.model_copy(update={"mcpServers": {}})
    assert overall(setting_changes(spec, without)) is Risk.LOW


FILES = st.dictionaries(
    st.sampled_from(["agent.nix", "flake.nix", "flake.lock", "prompt.md", "lib/x.nix"]),
    st.builds(FileId, mode=st.just("100644"), blob=st.sampled_from(["a" * 40, "b" * 40])),
)


@given(FILES, st.booleans(), st.sampled_from(["bare", "nixos"]))
def test_equal_files_have_no_changes(files: dict[str, FileId], settings: bool, platform: Any) -> None:
    assert file_changes(files, files, prompt=None, settings_changed=settings, platform=platform) == ()


@given(FILES, FILES, st.booleans())
def test_only_prompt_and_agent_nix_may_change_at_low_risk(
    before: dict[str, FileId], after: dict[str, FileId], settings: bool
) -> None:
    found = file_changes(before, after, prompt="prompt.md", settings_changed=settings, platform="bare")
    low = {change.option for change in found if change.risk is Risk.LOW}
    assert low <= {"file prompt.md", "file agent.nix"}
    told = {change.option.removeprefix("file ") for change in found}
    changed = {path for path in {*before, *after} if before.get(path) != after.get(path)}
    assert changed - told <= ({"agent.nix"} if settings else set())


@given(FILES, FILES)
def test_on_nixos_every_changed_file_but_the_prompt_is_elevated(
    before: dict[str, FileId], after: dict[str, FileId]
) -> None:
    found = file_changes(before, after, prompt="prompt.md", settings_changed=True, platform="nixos")
    assert all(change.risk is Risk.ELEVATED for change in found if change.option != "file prompt.md")


def test_many_files_are_told_as_one_line_with_the_worst_risk() -> None:
    after = {f"f{number:03}": FileId("100644", "a" * 40) for number in range(FILES_SHOWN + 7)}
    found = file_changes({}, after, prompt=None, settings_changed=False, platform="bare")
    assert len(found) == FILES_SHOWN + 1
    assert found[-1].option == "7 more files"
    assert found[-1].risk is Risk.ELEVATED


@given(st.text(max_size=60))
def test_any_pattern_is_judged_and_none_is_low(pattern: str) -> None:
    risk, reason = bash_risk(pattern)
    assert risk is not Risk.LOW
    assert reason
