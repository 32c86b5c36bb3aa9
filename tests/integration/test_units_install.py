"""`hive install-units` into a directory: what it writes, leaves, refuses and takes away."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from reconciler.cli.main import main

UNITS = "etc/systemd/system"
ALL = {
    "etc/hyperhive/config.json", "etc/sysusers.d/hyperhive.conf", "etc/tmpfiles.d/hyperhive.conf",
    f"{UNITS}/hived.socket", f"{UNITS}/hived-ui.socket", f"{UNITS}/hived.service",
    f"{UNITS}/hive-gateway.service", f"{UNITS}/hive-ui.service", f"{UNITS}/hive.slice",
    f"{UNITS}/hive-agent@.service", "usr/local/bin/hive",
}  # fmt: skip


def hive(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> Any:
    assert main([*arguments, "--json"]) == status
    return json.loads(capsys.readouterr().out)


def listed(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_the_first_time_all_is_made_and_the_second_time_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = hive(capsys, "install-units", "--root", str(tmp_path))
    assert listed(tmp_path) == ALL
    assert {change["action"] for change in first["changes"]} == {"create"}
    assert first["commands"] == [], "another root is nobody's to tell"
    assert any("systemctl enable --now hived.socket" in line for line in first["next"])
    again = hive(capsys, "install-units", "--root", str(tmp_path))
    assert {change["action"] for change in again["changes"]} == {"keep"}


def test_a_dry_run_shows_the_difference_and_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hive(capsys, "install-units", "--root", str(tmp_path), "--dry-run")
    assert listed(tmp_path) == set()
    hive(capsys, "install-units", "--root", str(tmp_path))
    unit = tmp_path / UNITS / "hived.service"
    unit.write_text(unit.read_text().replace("WatchdogSec=30s", "WatchdogSec=5s"))
    before = unit.read_text()
    assert main(["install-units", "--root", str(tmp_path), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "-WatchdogSec=5s\n+WatchdogSec=30s" in shown
    assert unit.read_text() == before
    done = hive(capsys, "install-units", "--root", str(tmp_path))
    changed = [change["path"] for change in done["changes"] if change["action"] == "update"]
    assert changed == ["/etc/systemd/system/hived.service"]
    assert "WatchdogSec=30s" in unit.read_text()


def test_a_configuration_that_is_there_stays_and_decides(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "etc/hyperhive/config.json"
    config.parent.mkdir(parents=True)
    mine = json.dumps({"driver": "shim", "ui_port": 7123, "gateway_user": "post", "run_dir": "/run/mine"})
    config.write_text(mine)
    hive(capsys, "install-units", "--root", str(tmp_path))
    assert config.read_text() == mine
    assert "KillMode=process" in (tmp_path / UNITS / "hived.service").read_text()
    assert "--port 7123 --socket /run/mine/ui.sock" in (tmp_path / UNITS / "hive-ui.service").read_text()
    assert "\nUser=post\n" in (tmp_path / UNITS / "hive-gateway.service").read_text()
    assert "u post - " in (tmp_path / "etc/sysusers.d/hyperhive.conf").read_text()
    config.write_text('{"driver": "rowing"}')
    assert main(["install-units", "--root", str(tmp_path), "--json"]) == 1
    assert "driver" in json.loads(capsys.readouterr().out)["error"]["message"]


def test_a_unit_of_somebody_else_is_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = tmp_path / UNITS / "hived.service"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("[Service]\nExecStart=/bin/true\n")
    assert main(["install-units", "--root", str(tmp_path)]) == 1
    assert "was not made by" in capsys.readouterr().err
    assert listed(tmp_path) == {f"{UNITS}/hived.service"}, "it looks at all before it writes anything"


def test_uninstalling_takes_what_was_installed_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hive(capsys, "install-units", "--root", str(tmp_path))
    (tmp_path / UNITS / "other.service").write_text("[Service]\n")
    slice_file = tmp_path / UNITS / "hive.slice"
    slice_file.write_text("# the operator's own\n[Slice]\n")
    hive(capsys, "uninstall-units", "--root", str(tmp_path), "--dry-run")
    assert listed(tmp_path) >= ALL
    done = hive(capsys, "uninstall-units", "--root", str(tmp_path))
    assert listed(tmp_path) == {
        "etc/hyperhive/config.json", f"{UNITS}/other.service", f"{UNITS}/hive.slice"
    }  # fmt: skip
    assert len(done["changes"]) == len(ALL) - 2


def test_the_installed_command_is_the_command_line_of_this_program(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hive(capsys, "install-units", "--root", str(tmp_path))
    done = subprocess.run(
        [tmp_path / "usr/local/bin/hive", "version", "--json"],
        env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=True, timeout=30,
    )  # fmt: skip
    assert json.loads(done.stdout)["version"]


def test_a_root_that_is_not_there_is_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["install-units", "--root", str(tmp_path / "missing")]) == 2
