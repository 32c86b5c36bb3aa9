"""The bed itself: what tests of units, D-Bus and machined stand on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from checks.bed import images
from checks.bed.guest import Bed, BedCommandError
from reconciler.demo.install import CLONE
from tests.support.bed import pytest_in_bed

_NESTED = """
mkdir -p {place}/root {place}/state
cd {place}/root
mkdir -p usr proc sys dev run tmp var root etc state
ln -s usr/bin bin; ln -s usr/lib lib; ln -s usr/lib64 lib64
echo ID=nested > etc/os-release
: > etc/machine-id
systemd-run --quiet --wait --pipe --collect --slice=machine.slice --property=Delegate=yes \
  systemd-nspawn --quiet --keep-unit --machine=nested --directory={place}/root --read-only \
  --private-users=1048576:65536 --private-users-ownership=map --private-network --no-new-privileges=yes \
  --system-call-filter=~@mount --link-journal=no --resolv-conf=off --timezone=off --console=pipe \
  --bind-ro=/usr --bind={place}/state:/state:idmap \
  /usr/bin/python3 -S -c 'open("/state/made", "w").close(); print(open("/proc/self/uid_map").read())'
"""
_DERIVATION = """
derivation {
  name = "probe";
  system = builtins.currentSystem;
  builder = "/bin/sh";
  args = [ "-c" "echo built > $out" ];
}
"""


def test_every_unit_of_the_bed_starts(bed: Bed) -> None:
    assert bed.run("systemctl", "is-system-running", "--wait").stdout == "running\n"
    version = {"bookworm": "252", "trixie": "257"}[bed.image.suite]
    assert bed.run("systemctl", "--version").stdout.split()[1] == version


def test_a_unit_says_how_it_ended_on_the_bus(bed: Bed) -> None:
    done = bed.unit("/bin/sh", "-c", "echo out; echo err >&2; exit 7", check=False)
    assert (done.status, done.stdout, done.stderr) == (7, "out\n", "err\n")
    names = bed.run("busctl", "--system", "list", "--acquired").stdout
    assert "org.freedesktop.systemd1" in names


def test_a_nested_container_with_a_user_namespace_runs_and_is_registered(bed: Bed) -> None:
    place = "/var/lib/hyperhive/nested"
    done = bed.sh(_NESTED.format(place=place))
    assert done.stdout.split() == ["0", "1048576", "65536"]
    assert bed.path(f"{place}/state/made").stat().st_uid == 0
    told = bed.run("journalctl", "--unit=systemd-machined", "--output=cat").stdout
    assert "New machine nested." in told
    assert "Machine nested terminated." in told


def test_nix_builds_offline_through_the_daemon_for_its_users(bed: Bed) -> None:
    bed.path("/bed/probe.nix").write_text(_DERIVATION)
    bed.path("/bed/probe.nix").chmod(0o644)
    nobody = ("setpriv", "--reuid=nobody", "--regid=nix-users", "--clear-groups")
    build = ("nix-build", "--no-out-link", "/bed/probe.nix")
    path = bed.run(*nobody, *build, env={"NIX_REMOTE": "daemon", "HOME": "/bed/tmp"}).stdout.strip()
    assert path.startswith("/nix/store/")
    assert bed.path(path).read_text() == "built\n"
    assert bed.path(path).stat().st_uid == 0


def test_the_bed_has_no_network_but_its_loopback(bed: Bed) -> None:
    assert [line.split(":")[1] for line in bed.run("ip", "-o", "link").stdout.splitlines()] == [" lo"]


def test_pytest_runs_inside_and_its_failures_come_out(bed: Bed) -> None:
    results = pytest_in_bed(bed, "tests/unit/test_container_records.py")
    assert {result.outcome for result in results} == {"passed"}
    wrong = "def test_one_is_two() -> None:\n    assert 1 == 2\n"
    bed.path("/bed/test_wrong.py").write_text(wrong)
    with pytest.raises(BedCommandError, match=r"test_one_is_two(.|\n)*assert 1 == 2"):
        pytest_in_bed(bed, "/bed/test_wrong.py")
    with pytest.raises(BedCommandError, match="no tests ran"):
        pytest_in_bed(bed, "/bed/test_wrong.py", "-k", "nothing_of_this_name")


def test_a_command_that_hangs_is_ended_at_its_deadline(bookworm: Bed) -> None:
    before = set(bookworm.processes())
    with pytest.raises(BedCommandError, match="still running"):
        bookworm.run("sleep", "600", timeout_s=0.2)
    with pytest.raises(BedCommandError, match="still running"):
        bookworm.unit("sleep", "600", timeout_s=0.5)
    bookworm.until(lambda: set(bookworm.processes()) <= before, "the processes are gone")


def test_state_outlives_a_reboot_and_a_power_cut(fresh_bed: Bed) -> None:
    fresh_bed.sh("echo unit > /etc/kept; echo state > /var/lib/hyperhive/kept; echo gone > /run/kept")
    fresh_bed.reboot()
    assert fresh_bed.sh("cat /etc/kept /var/lib/hyperhive/kept; ls /run").stdout.split()[:2] == [
        "unit",
        "state",
    ]
    assert "kept" not in fresh_bed.run("ls", "/run").stdout.split()
    fresh_bed.cut()
    fresh_bed.boot()
    assert fresh_bed.run("cat", "/etc/kept").stdout == "unit\n"
    assert fresh_bed.journal().count("Startup finished in") == 3


_KILLED = """
import os, sys
from checks.bed import images
from checks.bed.guest import Bed
bed = Bed(images.ensure(sys.argv[1]))
bed.boot()
print(bed.place, *bed.processes(), flush=True)
sys.stdin.read()
"""


def test_a_bed_dies_with_its_maker_and_the_next_one_clears_up(bookworm: Bed) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _KILLED, bookworm.image.suite],
        cwd=CLONE, env={**os.environ, "PYTHONPATH": str(CLONE)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as maker:  # fmt: skip
        assert maker.stdout is not None
        place, *processes = maker.stdout.readline().decode().split()
        assert len(processes) > 3
        maker.kill()
    bookworm.until(lambda: not any(_lives(pid) for pid in processes), "the processes are gone")
    with Bed(images.ensure(bookworm.image.suite)):
        assert not Path(place).exists()


def _lives(pid: str) -> bool:
    """Whether a process runs; one that nobody has reaped yet does not."""
    try:
        return Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except OSError:
        return False


def test_a_bed_leaves_nothing(bed: Bed) -> None:
    for ending in (Bed.power_off, Bed.cut):
        with Bed(images.ensure(bed.image.suite)) as own:
            processes, groups, lock = own.processes(), own._groups, own._lock
            assert len(processes) > 3
            ending(own)
        assert [pid for pid in processes if _lives(str(pid))] == []
        assert [group for group in groups if group.exists()] == []
        assert not list(Path("/run/systemd/nspawn").glob(f"*/*{own.place.name}*"))
        assert not Path("/run/systemd/nspawn/locks", lock).exists()
        assert not own.place.exists()
        assert own.place.name not in Path("/proc/self/mountinfo").read_text()
