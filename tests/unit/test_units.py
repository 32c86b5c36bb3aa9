"""The units of the hive's services: what systemd makes of them, and that every relaxation has its reason."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from reconciler.config import Config
from reconciler.errors import OperatorError
from reconciler.units import catalogue, nixos
from reconciler.units.files import HANDED_OVER, SYSUSERS, TMPFILES, Host, files, first_config
from reconciler.units.hardening import STRICT
from reconciler.units.installing import changeable, check_readable
from reconciler.units.model import Unit, changed, setting, word
from tests.support.needs import needs_root

ROOT = Path(__file__).parents[2]
DRIVERS: tuple[catalogue.Driver, ...] = ("shim", "systemd")
CEILINGS = {"hived.service": 4.0, "hive-gateway.service": 1.5, "hive-ui.service": 1.2}
"""Exposure as `systemd-analyze security` counts it, 0 to 10."""


def host(driver: catalogue.Driver = "systemd", **more: object) -> Host:
    config = Config.model_validate({**first_config(ROOT), "driver": driver, **more})
    return Host(config, python=sys.executable, source=ROOT)


def written(folder: Path, made: Host) -> list[str]:
    """The unit files in a folder; their paths."""
    paths = []
    for file in files(made):
        if file.path.parent.name == "system":
            (folder / file.path.name).write_text(file.text)
            paths.append(str(folder / file.path.name))
    return paths


def systemd_analyze(*arguments: str, units: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", "--no-pager", *arguments],
        env={"PATH": os.environ["PATH"], "SYSTEMD_UNIT_PATH": f"{units}:"},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def plain(paths: list[str]) -> list[str]:
    """Without the template, which is verified as an instance."""
    return [path.replace("hive-agent@.", "hive-agent@smith.") for path in paths]


@pytest.mark.parametrize("driver", DRIVERS)
def test_systemd_has_nothing_to_say_about_the_units(tmp_path: Path, driver: catalogue.Driver) -> None:
    done = systemd_analyze("verify", *plain(written(tmp_path, host(driver))), units=tmp_path)
    assert (done.stdout + done.stderr, done.returncode) == ("", 0)


def test_systemd_would_say_it_if_there_were_something(tmp_path: Path) -> None:
    written(tmp_path, host())
    unit = tmp_path / "hived.service"
    unit.write_text(unit.read_text().replace("WatchdogSec=", "WatchdogSeconds="))
    done = systemd_analyze("verify", str(unit), units=tmp_path)
    assert "WatchdogSeconds" in done.stderr


@pytest.mark.parametrize("name", CEILINGS)
def test_what_a_service_is_exposed_to_stays_under_its_ceiling(tmp_path: Path, name: str) -> None:
    written(tmp_path, host())
    done = systemd_analyze(
        "security", "--offline=yes", f"--threshold={CEILINGS[name] * 10:.0f}", str(tmp_path / name),
        units=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-400:]
    # as systemd counts, a ceiling that is far above would hold back nothing
    tight = f"--threshold={CEILINGS[name] * 10 - 6:.0f}"
    assert systemd_analyze(
        "security", "--offline=yes", tight, str(tmp_path / name), units=tmp_path
    ).returncode


@pytest.mark.parametrize("unit", catalogue.units("systemd"), ids=lambda unit: unit.name)
def test_every_relaxation_of_the_strictest_set_stands_with_its_reason(unit: Unit) -> None:
    if unit.name not in catalogue.SERVICES:
        return
    service = {one.key: one for one in unit.sections["Service"]}
    for strict in STRICT:
        found = service[strict.key]
        assert found.values == strict.values or found.why, strict.key
        if found.why:
            assert f"# {found.why}\n{strict.key}=" in unit.text(host().values())


def test_a_relaxation_without_a_reason_cannot_be_written() -> None:
    with pytest.raises(AssertionError, match="reason"):
        changed(STRICT, setting("ProtectSystem", "no"))


def test_hived_has_no_network_but_unix_sockets_and_netlink() -> None:
    text = next(unit for unit in catalogue.units("systemd") if unit.name == "hived.service").text(
        host().values()
    )
    assert "\nPrivateNetwork=yes\n" in text
    assert "\nRestrictAddressFamilies=AF_UNIX AF_NETLINK\n" in text
    assert "\nIPAddressDeny=any\n" in text


@pytest.mark.parametrize(("driver", "mode"), [("systemd", "mixed"), ("shim", "process")])
def test_what_ends_with_hived_depends_on_whose_containers_they_are(
    driver: catalogue.Driver, mode: str
) -> None:
    text = next(file.text for file in files(host(driver)) if file.path.name == "hived.service")
    assert f"\nKillMode={mode}\n" in text


def test_the_credential_is_handed_over_only_if_the_configuration_looks_for_it_there() -> None:
    def gateway(file: str | None) -> str:
        made = host(gateway={"credential_file": file})
        return next(one.text for one in files(made) if one.path.name == "hive-gateway.service")

    assert "\nLoadCredential=credential:/etc/hyperhive/credential\n" in gateway(HANDED_OVER)
    assert "LoadCredential" not in gateway("/srv/key")
    assert "LoadCredential" not in gateway(None)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/opt/hyperhive", "/opt/hyperhive"),
        ("/opt/100%/x", "/opt/100%%/x"),
        ("/opt/a b/$x", '"/opt/a b/$$x"'),
        ('/opt/"', '"/opt/\\""'),
    ],
)
def test_a_path_means_itself_in_a_unit_file(path: str, expected: str) -> None:
    assert word(path) == expected


@needs_root
@pytest.mark.parametrize("group", ["", "nix-users"])
def test_systemd_makes_the_users_and_directories(tmp_path: Path, group: str) -> None:
    made = Host(Config(), build_group=group)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/group").write_text("root:x:0:\nnix-users:x:990:\n")
    (tmp_path / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    for file in files(made):
        if file.path in {SYSUSERS, TMPFILES}:
            (tmp_path / file.path.relative_to("/")).parent.mkdir()
            (tmp_path / file.path.relative_to("/")).write_text(file.text)
    for command in (["systemd-sysusers"], ["systemd-tmpfiles", "--create"]):
        file_name = (SYSUSERS if len(command) == 1 else TMPFILES).name
        done = subprocess.run(
            [*command, f"--root={tmp_path}", file_name],
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        assert done.returncode == 0, done.stderr
    entries = [line.split(":") for line in (tmp_path / "etc/passwd").read_text().splitlines()]
    users = {entry[0]: (int(entry[2]), int(entry[3])) for entry in entries}
    assert {"hive-ui", "hive-gateway", "hive-build"} <= users.keys()
    assert (users["hive-build"][1] == 990) == bool(group)
    assert "hive:x:" in (tmp_path / "etc/group").read_text()
    ledger = (tmp_path / "var/lib/hyperhive/gateway").stat()
    assert (ledger.st_uid, ledger.st_mode & 0o777) == (users["hive-gateway"][0], 0o700)
    assert (tmp_path / "run/hyperhive").stat().st_mode & 0o777 == 0o711


def test_a_program_that_services_cannot_read_is_refused_with_the_place() -> None:
    with tempfile.TemporaryDirectory(prefix="hive-") as folder:  # pytest's own is closed further up
        clone = Path(folder, "clone")
        (clone / "reconciler").mkdir(parents=True)
        (clone / "reconciler/__init__.py").touch()
        Path(folder).chmod(0o755)
        made = Host(Config(), python="/usr/bin/env", source=clone)
        check_readable(made)
        clone.chmod(0o700)
        with pytest.raises(OperatorError, match=rf"^{clone} is closed to other users"):
            check_readable(made)
        clone.chmod(0o755)
        (clone / "reconciler/__init__.py").chmod(0o600)
        with pytest.raises(OperatorError, match=r"__init__.py is closed"):
            check_readable(made)


@needs_root
def test_a_program_that_others_can_change_is_told_with_the_place() -> None:
    with tempfile.TemporaryDirectory(prefix="hive-") as folder:
        clone = Path(folder, "clone")
        (clone / "reconciler").mkdir(parents=True)
        made = Host(Config(), python="/usr/bin/env", source=clone)
        assert changeable(made) == ""
        (clone / "reconciler").chmod(0o775)
        assert changeable(made) == f"{clone}/reconciler has mode 0775"
        (clone / "reconciler").chmod(0o755)
        os.chown(clone, 1000, 1000)
        assert changeable(made) == f"{clone} belongs to uid 1000"


def test_the_units_of_the_nixos_module_are_these() -> None:
    wanted = "python -m reconciler.units.nixos > modules/units.json"
    assert (ROOT / "modules/units.json").read_text() == nixos.text(), wanted
    assert json.loads(nixos.text()).keys() == set(DRIVERS)


@pytest.mark.parametrize("driver", DRIVERS)
def test_on_nixos_the_units_are_the_same(driver: catalogue.Driver) -> None:
    done = subprocess.run(
        ["nix-instantiate", "--eval", "--strict", "--json", "--store", "dummy://",
         str(ROOT / "checks/eval/host.nix"), "--argstr", "driver", driver],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    nix = json.loads(done.stdout)
    config = Config.model_validate({"driver": driver, "gateway": {"credential_file": HANDED_OVER}})
    made = Host(config, python="/python/bin/python", source=Path("/opt/hyperhive"))
    texts = {file.path.name: file.text for file in files(made) if file.path != SYSUSERS}

    def settings_in(text: str, section: str) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for line in text.split(f"\n[{section}]\n")[1].split("\n[", maxsplit=1)[0].splitlines():
            key, equals, value = line.partition("=")
            if equals and not line.startswith("#"):
                found.setdefault(key, []).append(value)
        return found

    def of_nix(config: dict[str, str | int | list[str]]) -> dict[str, list[str]]:
        return {
            key: [str(value)] if isinstance(value, (str, int)) else value for key, value in config.items()
        }

    for name in ("hived", "hive-gateway", "hive-ui"):
        here, there = (
            settings_in(texts[f"{name}.service"], "Service"),
            of_nix(nix["services"][name]["serviceConfig"]),
        )
        if name == "hive-gateway":
            assert there.pop("LoadCredential") == ["credential:/run/secrets/key"], (
                "the host names its own file"
            )
            del here["LoadCredential"]
            assert here.pop("IPAddressDeny") == [""], "as in NixOS, where nothing has set it"
        assert here == there
        unit = settings_in(texts[f"{name}.service"], "Unit")
        assert nix["services"][name]["after"] == unit["After"][0].split()
        assert nix["services"][name]["wants"] == unit.get("Wants", [""])[0].split()
        assert of_nix(nix["services"][name]["unitConfig"]) == {"StartLimitIntervalSec": ["0"]}
    for name in ("hived", "hived-ui"):
        here = settings_in(texts[f"{name}.socket"], "Socket")
        assert here == of_nix(nix["sockets"][name]["socketConfig"])
    if driver == "systemd":
        agent = settings_in(texts["hive-agent@.service"], "Service")
        environment = nix["services"]["hive-agent@"]["environment"]
        assert agent.pop("Environment") == [f"{key}={value}" for key, value in environment.items()]
        assert agent == of_nix(nix["services"]["hive-agent@"]["serviceConfig"])
    rows = texts[TMPFILES.name].splitlines()
    assert sorted(nix["tmpfiles"]) == sorted(row for row in rows if row.startswith("d "))
