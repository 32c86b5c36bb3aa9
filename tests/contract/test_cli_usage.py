"""`hive` used wrongly, without hived or by the wrong user, and its documents."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from reconciler.cli import reference
from reconciler.cli.grammar import parser_of
from reconciler.cli.verbs import VERBS
from reconciler.control.server import ControlServer
from reconciler.model.states import Desired
from tests.contract.cli_kit import ROOT, hive
from tests.fakes.objects import COMMIT
from tests.fakes.services import FakeServices
from tests.support.needs import needs_root

pytestmark = [pytest.mark.asyncio, pytest.mark.usefixtures("server")]


async def test_errors_go_to_standard_error_and_as_an_envelope_to_programs() -> None:
    person = await hive("agents", "nobody")
    assert (person.status, person.out, person.err) == (1, "", "hive: there is no agent nobody\n")
    program = await hive("agents", "nobody", "--json")
    assert program.json == {"error": {"code": "not-found", "message": "there is no agent nobody", "hint": ""}}
    assert program.err == person.err
    for name in ("..", "a/b", "", "-x", "\u00fc", "a" * 40):
        ran = await hive("agents", "--", name)
        assert (ran.status, "not an agent name" in ran.err) == (1, True), name


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("", "usage: hive VERB"),
        ("aproove 1", "did you mean `hive approve`?"),
        ("xyzzy", "`hive help` lists the verbs"),
        ("approve", "arguments are required"),
        ("approve one", "not a whole number"),
        ("approve -1", "not a whole number"),
        ("status --colour", "unrecognized arguments: --colour"),
        ("new a --role king", "invalid choice"),
        ("status --js", "unrecognized arguments"),
    ],
)
async def test_wrong_usage_exits_with_2_and_says_where_help_is(command: str, words: str) -> None:
    ran = await hive(*command.split())
    assert (ran.status, ran.out) == (2, "")
    assert words in ran.err


async def test_a_user_name_that_is_none_is_told_what_one_may_be(services: FakeServices) -> None:
    for name in ("x y", "", "Vera", "9a", "a" * 32):
        ran = await hive("login", "--user", name)
        assert (ran.status, "a letter first" in ran.err, "pattern" in ran.err) == (1, True, False), name
    assert (await hive("login", "--user", "a" * 31)).status == 0


async def test_no_event_of_a_kind_is_said_with_the_kind() -> None:
    assert "no event has the kind nonsense" in (await hive("events", "--kind", "nonsense")).out


async def test_json_before_the_verb_is_told_where_it_belongs() -> None:
    ran = await hive("--json", "status")
    assert (ran.status, "`hive status --json`" in ran.err) == (2, True)


async def test_a_restart_of_a_held_agent_says_that_it_waits(services: FakeServices) -> None:
    services.agents.known["scout"] = services.agents.known["scout"].model_copy(update={"held": True})
    assert "`hive release scout`" in (await hive("restart", "scout")).out
    assert "release" not in (await hive("stop", "scout")).out


async def test_a_destroyed_agent_has_no_container_to_tell_of(services: FakeServices) -> None:
    assert "limits" in (await hive("agents", "scout")).out
    services.agents.known["scout"] = services.agents.known["scout"].model_copy(
        update={"desired": Desired.DESTROYED}
    )
    out = (await hive("agents", "scout")).out
    assert ("limits" in out, "container" in out) == (False, False)


async def test_help_is_there_for_every_verb() -> None:
    overview = await hive("help")
    assert overview.status == 0
    for verb in VERBS:
        assert f"  {verb.name} " in overview.out
        for words in (("help", verb.name), (verb.name, "--help")):
            ran = await hive(*words)
            assert (ran.status, ran.out.startswith(f"usage: hive {verb.name}")) == (0, True)
            assert all(line in ran.out for line, _ in verb.examples)


async def test_without_hived_it_says_how_to_start_it(server: ControlServer, run_dir: Path) -> None:
    await server.close()
    gone = await hive("status", "--json")
    assert (gone.status, gone.json["error"]["code"]) == (1, "unavailable")
    assert f"there is no {run_dir}/control.sock" in gone.err
    assert "systemctl start hived" in gone.err
    (run_dir / "control.sock").touch()
    assert "nobody listens" in (await hive("status")).err


async def test_the_demos_own_command_does_not_speak_of_systemd(
    server: ControlServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await server.close()
    monkeypatch.setenv("HIVE_DEMO", "1")
    gone = await hive("status")
    assert "systemctl" not in gone.err
    assert "the demo starts it again by itself" in gone.err


@pytest.mark.parametrize("made", ["reconciler.cli.reference", "reconciler.control.openapi"])
async def test_what_makes_the_references_can_be_asked_how(made: str, tmp_path: Path) -> None:
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", made, "--help"), cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await child.communicate()
    assert (child.returncode, err) == (0, b"")
    assert out.startswith(b"usage: ")


@needs_root
async def test_who_is_no_operator_is_told_how_to_become_one(run_dir: Path) -> None:
    child = await asyncio.create_subprocess_exec(
        *(
            "/usr/bin/python3",
            "-c",
            "from reconciler.cli.main import main; raise SystemExit(main(['status']))",
        ),
        cwd="/",
        env={"PYTHONPATH": str(ROOT), "HIVE_RUN": str(run_dir), "PYTHONDONTWRITEBYTECODE": "1"},
        user=54321,
        group=54321,
        extra_groups=[],
        stderr=asyncio.subprocess.PIPE,
    )
    _, err = await child.communicate()
    if b"ModuleNotFoundError" in err:
        pytest.skip("another user cannot read this clone")
    assert child.returncode == 1
    assert b"you may not open" in err
    assert b"members of the group" in err


async def test_a_reader_that_has_enough_is_no_error() -> None:
    command = f"{shlex.quote(sys.executable)} -m reconciler.cli agents | head -c1"
    done = await asyncio.to_thread(
        subprocess.run, ["bash", "-o", "pipefail", "-c", command], cwd=ROOT, capture_output=True, timeout=10
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"A", b"")


async def test_the_reference_and_the_schema_are_up_to_date() -> None:
    wanted = "run: python -m reconciler.cli.reference"
    assert (ROOT / "docs" / "cli.md").read_text() == reference.text(), wanted
    schema = (await hive("schema")).out
    assert (ROOT / "docs" / "spec.schema.json").read_text() == schema, wanted
    assert json.loads(schema)["properties"]["model"]["default"] == "haiku"


async def test_every_example_parses() -> None:
    for verb in VERBS:
        for line, _ in verb.examples:
            command = re.sub(
                r"\$\(.*?\)", COMMIT, line.split(" | hive ")[-1].split(" | jq")[0].split(" > ")[0]
            )
            words = shlex.split(command.removeprefix("hive "))
            assert words[0] == verb.name
            parser_of(verb).parse_intermixed_args(words[1:])


async def test_the_version_is_the_projects() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert (await hive("version")).out == f"hyperhive {project}\n"
    assert (await hive("--version")).out == f"hyperhive {project}\n"
    assert (await hive("version", "--json")).json == {"version": project}


async def test_a_configuration_is_checked_without_a_hive(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"ui_port": 7001}')
    assert (await hive("check-config", str(file))).out == f"{file} is valid\n"
    assert (await hive("check-config", str(file), "--json")).json["ui_port"] == 7001
    file.write_text('{"ui_port": "seven"}')
    ran = await hive("check-config", str(file), "--json")
    assert (ran.status, "ui_port" in ran.json["error"]["message"]) == (1, True)
    file.write_text('{"timeouts": {"resync_s": 0.01}}')
    ran = await hive("check-config", str(file), "--json")
    told = "timeouts.resync_s: Input should be greater than or equal to 0.1"
    assert (ran.status, told in ran.json["error"]["message"]) == (1, True)
    assert (await hive("check-config", str(tmp_path / "missing"))).status == 1


async def test_it_starts_without_the_large_libraries() -> None:
    code = (
        "import sys; from reconciler.cli.main import main; status = main(['agents', '--json']); "
        "heavy = {'pydantic', 'aiohttp', 'asyncio', 'structlog', 'dataclasses'} & set(sys.modules); "
        "assert not heavy, heavy; sys.exit(status)"
    )
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=10
    )
    assert (done.returncode, done.stderr) == (0, b"")
