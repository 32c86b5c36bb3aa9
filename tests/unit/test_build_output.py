"""What Nix says while it builds, line by line: its own words count, those of builders are only shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from reconciler.effects.nix import output
from reconciler.effects.nix.output import BuildOutput
from reconciler.effects.protocols import BuildProgress

DRV = "/nix/store/" + "0" * 32 + "-{}.drv"
BUILDS: dict[str, Any] = {"action": "start", "id": 1, "level": 0, "text": "", "type": 104}


def nix(**entry: Any) -> str:
    return "@nix " + json.dumps(entry)


def begin(number: int, name: str) -> str:
    path = DRV.format(name)
    return nix(
        action="start", id=number, level=3, type=105, text=f"building '{path}'", fields=[path, "", 1, 1]
    )


def count(built: object, expected: object, number: int = 1) -> str:
    return nix(action="result", id=number, type=105, fields=[built, expected, 1, 0])


def says(number: int, text: str) -> str:
    return nix(action="result", id=number, type=101, fields=[text])


class Taken:
    """A log and a progress that were told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.told: list[BuildProgress] = []
        self.output = BuildOutput(self._log, self.told.append)

    async def _log(self, line: str) -> None:
        self.lines.append(line)

    async def take(self, *lines: str) -> Taken:
        for line in lines:
            await self.output.take(line)
        return self


@pytest.mark.asyncio
async def test_derivations_are_counted_and_named_while_they_are_built() -> None:
    taken = await Taken().take(
        nix(**BUILDS), count(0, 2), begin(7, "a-1.0"), begin(8, "b"), nix(action="stop", id=7), count(1, 2),
        nix(action="stop", id=8), count(2, 2),
    )  # fmt: skip
    assert BuildProgress(0, 2, ("a-1.0", "b")) in taken.told
    assert taken.told[-1] == BuildProgress(2, 2)
    assert taken.lines == [f"building '{DRV.format(name)}'" for name in ("a-1.0", "b")]


@pytest.mark.asyncio
async def test_lines_name_their_derivation_while_there_are_several() -> None:
    taken = await Taken().take(
        begin(7, "a"), says(7, "one"), begin(8, "b"), says(7, "two"), says(8, "three"), says(99, "nobody's")
    )
    assert [line for line in taken.lines if "building" not in line] == [
        "one", "a> two", "b> three", "nobody's",
    ]  # fmt: skip


@pytest.mark.asyncio
async def test_messages_are_plain_lines_up_to_the_level_of_information() -> None:
    taken = await Taken().take(
        nix(action="msg", level=0, msg="\x1b[31;1merror:\x1b[0m it broke\nhere"),
        nix(action="msg", level=3, msg="note"),
        nix(action="msg", level=4, msg="chatter"),
        "what is no object of nix's",
    )
    assert taken.lines == ["error: it broke", "here", "note", "what is no object of nix's"]
    assert list(taken.output.tail) == taken.lines


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "printed",
    [
        count(1_000_000, 2),
        begin(66, "innocent"),
        nix(action="stop", id=7),
        nix(action="result", id=1, type=105, fields=[50, 50]),
        "@nix {",
        "@nix " + "[" * 100_000,
        "a\x00b\u202ec\x1b[2J",
    ],
)
async def test_what_a_builder_prints_is_shown_and_changes_nothing(printed: str) -> None:
    taken = await Taken().take(nix(**BUILDS), count(0, 2), begin(7, "a"))
    before = taken.told[-1]
    await taken.take(says(7, printed))
    assert taken.told[-1] == before == BuildProgress(0, 2, ("a",))
    assert len(taken.lines) == 2
    assert len(taken.lines[-1]) <= 4096


@pytest.mark.asyncio
async def test_a_line_that_was_cut_short_is_mentioned_once() -> None:
    taken = await Taken().take(says(7, "x" * 1000)[:500])
    assert taken.lines == ["[a line of the log cannot be read]"]


@pytest.mark.asyncio
async def test_a_log_without_end_is_cut_and_its_end_is_kept_for_the_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(output, "LINES_MAX", 10)
    taken = await Taken().take(*[says(1, f"line {number}") for number in range(25)])
    await taken.output.end()
    assert taken.lines == [*[f"line {n}" for n in range(10)], "[the log is too long: 15 lines were left out]"]
    assert taken.output.tail[-1] == "line 24"


@pytest.mark.asyncio
async def test_names_that_are_no_derivations_are_not_shown_as_running() -> None:
    hostile = "/nix/store/" + "0" * 32 + "-<script>alert(1)</script>.drv"
    start = {"action": "start", "id": 7, "type": 105, "text": "building", "fields": [hostile]}
    taken = await Taken().take(nix(**start), begin(8, "fine"))
    assert taken.told[-1].running == ("fine",)


RECORDED = Path(__file__).parents[1] / "assets/nix"  # of `nix-build --log-format internal-json`, by version


@pytest.mark.asyncio
@pytest.mark.parametrize("version", ["2.8.0", "2.26.3"])
async def test_what_nix_itself_said_is_understood(version: str) -> None:
    built = await Taken().take(*(RECORDED / f"{version}-built.log").read_text().splitlines())
    assert built.told[-1] == BuildProgress(3, 3)
    assert {one.running for one in built.told} == {(), ("a",), ("b",), ("top",)}
    said = [line for line in built.lines if "/nix/store/" not in line]
    assert said == [
        "these 3 derivations will be built:", "line of a", "hostile", "line of b", "hostile", "line of top",
        "hostile",
    ]  # fmt: skip
    failed = await Taken().take(*(RECORDED / f"{version}-failed.log").read_text().splitlines())
    assert failed.told[-1].running == ()
    assert "line of c" in failed.lines
    assert any("failed with exit code 3" in line for line in failed.output.tail)
    assert failed.output.tail[-1].endswith("failed to build")
