"""A hive with real units, containers and Nix: backed up while it works, lost, restored, and at work again."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from checks.bed import images
from checks.bed.guest import Bed
from checks.bed.images import SUITES
from tests.support.hivehost import UNITS, HiveHost

_FILE = "/root/hive.tar"
_NOTES = "/var/lib/hyperhive/agents/scout/state/kept.md"
# A host that no other time server is asked for, in a guest; and its disk is the machine's.
_MAY_WARN = {"clock", "limits", "space", "file-system"}


@pytest.fixture(scope="module")
def host() -> Iterator[HiveHost]:
    with Bed(images.ensure(SUITES[0])) as bed:
        made = HiveHost(bed)
        try:
            made.install()
            made.hive("new", "hm1nd", "--role", "manager", "--approve", "--wait")
            made.hive("new", "scout", "--allow", "git *", "--approve", "--wait")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{bed.journal()[-8000:]}") from error
        yield made


def _findings(host: HiveHost) -> dict[str, tuple[str, str]]:
    done = host.hive("doctor", "--json", check=False)
    return {item["id"]: (item["status"], item["detail"]) for item in json.loads(done.stdout)["items"]}


def _bad(host: HiveHost) -> dict[str, tuple[str, str]]:
    return {
        name: found for name, found in _findings(host).items()
        if found[0] == "fail" or (found[0] == "warn" and name not in _MAY_WARN)
    }  # fmt: skip


def test_a_lost_hive_comes_back_from_its_backup_and_its_agents_go_on(host: HiveHost) -> None:
    bed = host.bed
    assert _bad(host) == {}
    done = host.hive("send", "scout", "what is in your repository?", "--wait")
    assert "I looked at my repository" in done.stdout
    bed.sh(f"echo remembered > {_NOTES} && chown --reference=$(dirname {_NOTES}) {_NOTES}")
    host.until_idle("hm1nd", "scout")
    before = {name: host.agent(name) for name in ("hm1nd", "scout")}
    paths = [one["store_path"] for one in host.get("/agents/scout/generations")["items"]]

    host.hive("backup", _FILE)
    owner = bed.run("stat", "-c", "%u:%g %a", _NOTES).stdout

    # The disk is lost: rows, repositories, states, roots, and what only they held in the store.
    host.hive("stop", "scout")
    host.hive("stop", "hm1nd")
    host.until(lambda: host.leader("scout") == 0 and host.leader("hm1nd") == 0, "the containers are gone")
    bed.run("systemctl", "stop", *UNITS)
    bed.sh("find /var/lib/hyperhive -mindepth 1 -delete")
    bed.sh("nix-collect-garbage >/dev/null 2>&1 || nix-store --gc >/dev/null 2>&1")
    for path in paths:
        assert bed.run("test", "-e", path, check=False).status != 0, "the store has lost it"

    host.hive("restore", _FILE, "--yes")
    assert bed.run("stat", "-c", "%u:%g %a", _NOTES).stdout == owner
    bed.run("systemctl", "start", *UNITS)
    host.until_idle("hm1nd", "scout")
    after = {name: host.agent(name) for name in ("hm1nd", "scout")}
    for name, agent in after.items():
        for key in ("role", "desired", "generation", "commit", "uid_base"):
            assert agent[key] == before[name][key], key
    assert bed.run("cat", _NOTES).stdout == "remembered\n"
    done = host.hive("send", "scout", "what is in your repository?", "--wait")
    assert "I looked at my repository" in done.stdout
    assert _bad(host) == {}
