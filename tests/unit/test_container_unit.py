"""The template unit's text, what counts as a difference from it, and what its commands write down."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.config import Config
from reconciler.effects.containers import cgroups, proc, record, unit, unitfile
from reconciler.effects.containers.unitfile import differences, text

_ROOT = Path(__file__).parents[2]
_CONFIG = Config(state_dir="/var/lib/hyperhive")
_TEXT = text(_CONFIG, python="/opt/hyperhive/.venv/bin/python", source=Path("/opt/hyperhive"))
_ORDER = record.Order("probe", "", "/nix/store/root", ("true",), {}, (), 1 << 30, 100, 10, 20.0)


# ------------------------------------------------------------------------------------------- the text
def test_the_units_commands_name_the_record_directory_and_their_failures_do_not_count() -> None:
    lines = [line for line in _TEXT.splitlines() if line.startswith("Exec")]
    command = "/opt/hyperhive/.venv/bin/python -S -P -m reconciler.effects.containers.unit"
    directory = "/var/lib/hyperhive/containers/%i"
    assert lines == [
        f"ExecStart={command} start {directory}",
        f"ExecStop=-{command} stop {directory}",
        f"ExecStopPost=-{command} ended {directory}",
    ]


def test_the_unit_has_nothing_that_systemd_complains_of(tmp_path: Path) -> None:
    path = tmp_path / unitfile.unit_name("probe")
    path.write_text(text(Config(state_dir=str(tmp_path))))
    command = ["systemd-analyze", "verify", "--man=no", str(path)]
    environment = {**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:/usr/lib/systemd/system"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=60)
    told = [line for line in done.stderr.splitlines() if "probe.service" in line]
    assert (done.returncode, told) == (0, [])


def test_odd_paths_are_quoted_as_systemd_reads_them() -> None:
    odd = text(Config(state_dir="/srv/a b/50%"), python='/opt/"p"/$x', source=Path("/opt/s s"))
    assert 'Environment="PYTHONPATH=/opt/s s"' in odd
    assert '"/srv/a b/50%%/containers/%i"' in odd
    assert 'ExecStart="/opt/\\"p\\"/$$x" -S' in odd


def test_the_host_module_declares_the_same_unit() -> None:
    module = (_ROOT / "modules/host.nix").read_text()
    declared = module[module.index('systemd.services."hive-agent@"') :]
    declared = declared[: declared.index("systemd.slices.hive")]
    service = _TEXT.partition("[Service]")[2]
    for line in service.splitlines():
        key, equals, value = line.partition("=")
        if (
            not equals
            or key.startswith("#")
            or key in {"Environment", "ExecStart", "ExecStop", "ExecStopPost"}
        ):
            continue
        assert f"{key} = {value};" in declared or f'{key} = "{value}";' in declared, line
    for verb in ("start", "stop", "ended"):
        assert f'command "{verb}"' in declared
    assert "-S -P -m reconciler.effects.containers.unit" in module


# ------------------------------------------------------------------------------------------- differences
def test_a_text_does_not_differ_from_itself_nor_from_another_spelling() -> None:
    assert differences(_TEXT, _TEXT) == []
    lines = [line for line in _TEXT.splitlines() if not line.startswith("#")]
    other = "\n".join(line.replace("Environment=", 'Environment="').strip() for line in lines)
    assert differences(_TEXT, other + "\nNice=5\nEnvironment=LANG=C\n") == []


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("KillMode=mixed", "KillMode=process", "KillMode="),
        ("Delegate=yes\n", "", "Delegate="),
        ("ExecStart=", "ExecStart=/bin/true\nExecStart=", "ExecStart="),
        ("Restart=no", "Restart=no\nExecStartPre=/bin/evil", "ExecStartPre="),
        ("PYTHONPATH=/opt/hyperhive", "PYTHONPATH=/opt/old", "Environment="),
    ],
    ids=["another value", "left out", "one more command", "a command that is not ours", "an old version"],
)
def test_a_setting_that_matters_is_named(old: str, new: str, told: str) -> None:
    assert differences(_TEXT, _TEXT.replace(old, new, 1)) == [told]


# ------------------------------------------------------------------------------------------- its commands
@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    record.write_order(tmp_path, _ORDER)
    monkeypatch.setenv("INVOCATION_ID", "a" * 32)
    for name in ("MAINPID", "SERVICE_RESULT", "EXIT_CODE", "EXIT_STATUS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def nspawn() -> Iterator[subprocess.Popen[str]]:
    """A process with one child, which has a handler for SIGTERM after a moment."""
    leader = (
        "import signal, time; time.sleep(0.2); signal.signal(15, lambda *_: None); print(1); time.sleep(60)"
    )
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-uc', {leader!r}])"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        yield process
        for child in proc.children(process.pid):
            os.kill(child, signal.SIGKILL)
        process.kill()


def written(directory: Path) -> record.Record:
    found = record.read_record(directory)
    assert found is not None
    return found


def running(directory: Path, pid: int, *, invocation: str = "a" * 32) -> record.Record:
    made = record.Record(
        "probe", invocation, "/nix/store/root", proc.world_id(), time.time(), "running", nspawn=proc.ref(pid)
    )
    record.write_record(directory, made)
    return made


@pytest.mark.parametrize(
    ("code", "status", "result", "expected"),
    [
        ("exited", "0", "success", (0, None)),
        ("exited", "5", "exit-code", (5, None)),
        ("killed", "KILL", "signal", (None, 9)),
        ("dumped", "SEGV", "core-dump", (None, 11)),
        ("", "", "resources", (None, None)),
    ],
)
def test_an_end_is_written_down_as_systemd_tells_it(
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    status: str,
    result: str,
    expected: tuple[int | None, int | None],
) -> None:
    before = running(directory, os.getpid())
    for name, value in (("EXIT_CODE", code), ("EXIT_STATUS", status), ("SERVICE_RESULT", result)):
        monkeypatch.setenv(name, value)
    unit.main(["unit", "ended", str(directory)])
    after = written(directory)
    assert (after.phase, after.exit_code, after.signal, after.result) == ("exited", *expected, result)
    assert (after.invocation, after.started_at) == (before.invocation, before.started_at)
    assert after.ended_at is not None
    assert not after.stop_asked


def test_an_end_before_the_first_record_makes_one(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running(directory, os.getpid(), invocation="b" * 32)
    monkeypatch.setenv("SERVICE_RESULT", "exit-code")
    unit.main(["unit", "ended", str(directory)])
    after = written(directory)
    assert (after.invocation, after.toplevel, after.phase) == ("a" * 32, "/nix/store/root", "exited")


def test_an_end_for_want_of_memory_is_told_from_any_other(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running(directory, os.getpid())
    monkeypatch.setattr(cgroups, "oom_kills", lambda paths: 2)
    monkeypatch.setenv("EXIT_CODE", "exited")
    for status, oom in (("0", False), ("1", True)):
        running(directory, os.getpid())
        monkeypatch.setenv("EXIT_STATUS", status)
        unit.main(["unit", "ended", str(directory)])
        assert written(directory).oom is oom
    assert written(directory).result == "oom-kill"


def test_a_stop_is_noted_before_the_signal_and_waits_for_somebody_who_hears_it(
    directory: Path, monkeypatch: pytest.MonkeyPatch, nspawn: subprocess.Popen[str]
) -> None:
    running(directory, nspawn.pid)
    monkeypatch.setenv("MAINPID", str(nspawn.pid))
    unit.main(["unit", "stop", str(directory)])
    assert written(directory).stop_asked
    (leader,) = proc.children(nspawn.pid)
    assert proc.ProcessRef(*proc.ref(leader)).catches(signal.SIGTERM)


def test_an_end_by_itself_is_no_stop_that_somebody_asked_for(
    directory: Path, monkeypatch: pytest.MonkeyPatch, nspawn: subprocess.Popen[str]
) -> None:
    running(directory, nspawn.pid)
    unit.main(["unit", "stop", str(directory)])  # systemd runs it after an exit with 0, without MAINPID
    assert not written(directory).stop_asked
    monkeypatch.setenv("MAINPID", str(nspawn.pid))
    running(directory, nspawn.pid, invocation="b" * 32)
    unit.main(["unit", "stop", str(directory)])
    assert not written(directory).stop_asked, "that was another start"


def test_no_second_container_of_a_name_is_started(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = running(directory, os.getpid(), invocation="b" * 32)
    with pytest.raises(SystemExit) as ended:
        unit.main(["unit", "start", str(directory)])
    assert ended.value.code == 1
    assert "another container of probe lives" in capsys.readouterr().err
    assert written(directory) == old
