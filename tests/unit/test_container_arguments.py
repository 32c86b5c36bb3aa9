"""The one argument builder: what must be on every container's command line, and what must never be."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from reconciler.config import Config, Gateway
from reconciler.effects.containers.arguments import ContainerCommand, container_command, size_bytes
from reconciler.effects.protocols import ContainerSpec
from reconciler.errors import PermanentError
from reconciler.model.names import AgentName
from reconciler.model.spec import Limits

SPEC = ContainerSpec(
    name=AgentName("scout"),
    toplevel="/nix/store/abc-hive-scout",
    uid_base=1_114_112,
    state_dir=Path("/var/lib/hyperhive/agents/scout"),
    run_dir=Path("/run/hyperhive/agents/scout"),
    manager=False,
    limits=Limits(memoryMax="2G", cpuQuota="150%", tasksMax=64, diskMax="3G"),
)
CONFIG = Config(gateway=Gateway(credential_file="/run/credentials/token"))


def command(spec: ContainerSpec = SPEC) -> ContainerCommand:
    return container_command(spec, CONFIG)


def values(option: str, found: ContainerCommand | None = None) -> list[str]:
    return [word.partition("=")[2] for word in (found or command()).argv if word.startswith(f"{option}=")]


def test_the_range_is_the_agents_own_and_nothing_is_idmapped_into_writable_places() -> None:
    assert values("--private-users") == ["1114112:65536"]
    assert values("--private-users-ownership") == ["map"]
    assert not any("idmap" in word for word in command().argv)


def test_network_privileges_and_system_calls_are_closed() -> None:
    assert "--private-network" in command().argv
    assert values("--no-new-privileges") == ["yes"]
    refused = values("--system-call-filter")[0]
    assert refused.startswith("~")
    assert {"@mount", "unshare", "setns"} <= set(refused[1:].split())


def test_every_capability_but_three_is_dropped() -> None:
    dropped = values("--drop-capability")[0].split(",")
    assert len(dropped) == len(set(dropped)) == 24
    assert not {"CAP_SETUID", "CAP_SETGID", "CAP_KILL"} & set(dropped)
    assert {"CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE"} <= set(dropped)
    assert not values("--capability")


def test_the_root_is_read_only_and_only_the_agents_places_are_writable() -> None:
    assert "--read-only" in command().argv
    base = SPEC.state_dir
    assert values("--bind") == [f"{base}/state:/state", f"{base}/home:/home/agent", f"{base}/config:/config"]
    assert f"{SPEC.run_dir}:/run/hive" in values("--bind-ro")
    assert command().hardened == (f"{base}/state", f"{base}/home", f"{base}/config")


def test_only_the_manager_has_the_tree_of_all_agents() -> None:
    manager = command(dataclasses.replace(SPEC, manager=True))
    assert f"{SPEC.state_dir}/agents:/agents" in values("--bind", manager)
    assert f"{SPEC.state_dir}/agents" in manager.hardened
    assert not any("/agents:/agents" in word for word in command().argv)


def test_limits_reach_both_resource_limits_and_the_control_group() -> None:
    assert "RLIMIT_NPROC=64:64" in values("--rlimit")
    assert "RLIMIT_CORE=0:0" in values("--rlimit")
    assert f"RLIMIT_FSIZE={3 * 1024**3}:{3 * 1024**3}" in values("--rlimit")
    found = command()
    assert (found.memory_bytes, found.cpu_percent, found.tasks) == (2 * 1024**3, 150, 64)
    assert any(f"size={512 * 1024**2}" in value for value in values("--tmpfs"))


def test_no_credential_and_no_environment_of_the_host_is_on_the_command_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-secret")
    found = command()
    text = " ".join([*found.argv, *found.env, *found.env.values()])
    assert "sk-secret" not in text
    assert "credentials" not in text
    assert set(found.env) == {"PATH", "LANG", "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "SYSTEMD_NSPAWN_TMPFS_TMP"}


def test_it_runs_the_harness_and_nothing_of_the_agents() -> None:
    assert command().argv[-3:] == ("/opt/hive/venv/bin/python", "-m", "harness")
    assert "PYTHONSAFEPATH=1" in values("--setenv")
    assert "PYTHONPATH=/opt/hive/lib" in values("--setenv")


def test_a_colon_in_a_path_cannot_redirect_a_bind() -> None:
    odd = dataclasses.replace(SPEC, state_dir=Path("/srv/a:/etc"))
    assert "/srv/a\\:/etc/state:/state" in values("--bind", command(odd))


def test_nothing_else_of_the_host_is_bound() -> None:
    sources = {value.rsplit(":", 1)[0] for value in values("--bind-ro")}
    harness = CONFIG.harness
    assert sources == {"/usr", "/etc/alternatives", harness.package, harness.venv, str(SPEC.run_dir)}


def test_a_platform_that_this_version_cannot_start_is_a_clear_error() -> None:
    with pytest.raises(PermanentError, match="nixos"):
        container_command(SPEC, Config(platform="nixos"))


@pytest.mark.parametrize(("text", "bytes_"), [("1K", 1024), ("4G", 4 * 1024**3), ("10T", 10 * 1024**4)])
def test_sizes_are_powers_of_1024(text: str, bytes_: int) -> None:
    assert size_bytes(text) == bytes_
