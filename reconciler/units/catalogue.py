"""The units of the hive's services: what each may do, and why it may do more than nothing. Pure.

`@names@` are the host's (`reconciler.units.files.Host`). hived's own unit depends on the driver: with
`systemd`, containers are units of their own; with `shim` they are children of hived, which inherit what is
closed to it and would die with its control group.
"""

from __future__ import annotations

from typing import Literal

from reconciler.units.hardening import STRICT
from reconciler.units.model import Setting, Unit, changed, setting, settings, without

Driver = Literal["shim", "systemd"]

HIVED, GATEWAY, UI = "hived.service", "hive-gateway.service", "hive-ui.service"
CONTROL_SOCKET, UI_SOCKET = "hived.socket", "hived-ui.socket"
SERVICES = (HIVED, GATEWAY, UI)
SOCKETS = (CONTROL_SOCKET, UI_SOCKET)

_ENVIRONMENT = settings(
    Environment=(
        "HIVE_CONFIG=@config@",
        "PYTHONPATH=@source@",
        "PYTHONSAFEPATH=1",
        "PYTHONUNBUFFERED=1",
        "PYTHONDONTWRITEBYTECODE=1",
    )
)
_AGAIN = (
    *settings(Restart="always", RestartSec="1s"),
    setting("TimeoutStopSec", "10s", "Each ends by itself within 5 s."),
)
# A full disk or a wrong configuration is mended while the unit goes on trying.
_FOR_EVER = settings(StartLimitIntervalSec="0")
_BOOT = settings(WantedBy="multi-user.target")


def units(driver: Driver) -> tuple[Unit, ...]:
    """All of them, in no order that matters."""
    return (_control_socket(), _ui_socket(), _hived(driver), _gateway(), _ui(), _slice())


def _control_socket() -> Unit:
    return Unit(
        CONTROL_SOCKET,
        {
            "Unit": settings(Description="hyperhive: where operators reach hived"),
            "Socket": (
                *settings(
                    ListenStream="@run@/control.sock", FileDescriptorName="control.sock", Service=HIVED,
                    SocketUser="root", SocketGroup="@operator_group@", SocketMode="0660",
                    DirectoryMode="0711", RemoveOnStop="yes",
                ),
                setting("Backlog", "512", "Who connects while hived is away waits here, and is not refused."),
            ),
            "Install": settings(WantedBy="sockets.target"),
        },
    )  # fmt: skip


def _ui_socket() -> Unit:
    return Unit(
        UI_SOCKET,
        {
            "Unit": settings(Description="hyperhive: where the web server reaches hived"),
            "Socket": (
                *settings(
                    ListenStream="@run@/ui.sock", FileDescriptorName="ui.sock", Service=HIVED,
                    SocketUser="@ui_user@", SocketGroup="@ui_user@", SocketMode="0600",
                    DirectoryMode="0711", RemoveOnStop="yes", Backlog="512",
                ),
            ),
            "Install": settings(WantedBy="sockets.target"),
        },
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------- hived
_HIVED_CAPABILITIES = (
    *("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL"),
    *("CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_ADMIN", "CAP_SYS_PTRACE"),
)
_HIVED_STRICT = changed(
    without(
        STRICT,
        PrivateUsers="It owns the files of many users.",
        ProtectKernelTunables="It forbids user namespaces inside containers, in their /proc/sys.",
        ProtectKernelLogs="A covered file in /proc would forbid sandboxes a /proc of their own.",
        RestrictNamespaces="Evaluations run in a sandbox of namespaces, as the build user.",
        RestrictSUIDSGID="It takes openat2(2) away, which bubblewrap cannot do without.",
    ),
    setting(
        "CapabilityBoundingSet", " ".join(_HIVED_CAPABILITIES),
        "Directories of agents (chown and the like), programs as other users, namespaces of containers.",
    ),
    setting("ProcSubset", "all", "It writes below /proc/sys, inside the namespaces of containers."),
    setting("RestrictAddressFamilies", "AF_UNIX AF_NETLINK", "Sandboxes bring their loopback up by netlink."),
    setting(
        "ReadWritePaths", "@state@ @run@ -/etc/systemd/system -/run/systemd/system",
        "Its own, and the unit of agents' containers, which it keeps as it should be.",
    ),
    setting(
        "SystemCallFilter",
        ("@system-service @mount @privileged", "~@clock @module @obsolete @raw-io @reboot @swap"),
        "Sandboxes mount; programs are started as other users.",
    ),
)  # fmt: skip
# Inherited by containers: only what they do not need either can be closed.
_HIVED_SHIM = settings(
    LimitCORE="0", LockPersonality="yes", ProtectClock="yes", ProtectKernelModules="yes",
    RestrictRealtime="yes", SystemCallArchitectures="native", UMask="0077",
)  # fmt: skip


def _hived(driver: Driver) -> Unit:
    stop: tuple[Setting, ...]
    if driver == "systemd":
        stop = (
            setting("KillMode", "mixed", "What it was running ends with it; agents are units of their own."),
        )
        hardening = _HIVED_STRICT
    else:
        stop = (
            setting(
                "KillMode", "process", "The parents of containers are in its control group, and outlive it."
            ),
            setting("Delegate", "yes", "It makes the containers' control groups."),
        )
        hardening = _HIVED_SHIM
    return Unit(
        HIVED,
        {
            "Unit": (
                *settings(
                    Description="hyperhive: the reconciler", Documentation="file:@source@/README.md",
                    After="dbus.socket nix-daemon.socket systemd-tmpfiles-setup.service",
                ),
                *_FOR_EVER,
            ),
            "Service": (
                *settings(
                    Type="notify", NotifyAccess="main", ExecStart="@python@ -m reconciler",
                    Sockets=" ".join(SOCKETS),
                ),
                *_ENVIRONMENT,
                *settings(Environment="NIX_REMOTE=daemon"),
                setting("TimeoutStartSec", "120s", "A long migration or first read asks for more by itself."),
                setting("WatchdogSec", "30s", "Fed while passes and event loop move, and only then."),
                *_AGAIN,
                *stop,
                *hardening,
            ),
            "Install": (*_BOOT, *settings(Also=" ".join(SOCKETS))),
        },
    )  # fmt: skip


# ------------------------------------------------------------------------------------- the unprivileged two
def _gateway() -> Unit:
    return Unit(
        GATEWAY,
        {
            "Unit": (
                *settings(
                    Description="hyperhive: the model gateway", Documentation="file:@source@/README.md",
                    After="network-online.target systemd-tmpfiles-setup.service",
                    Wants="network-online.target",
                ),
                *_FOR_EVER,
            ),
            "Service": (
                *settings(
                    Type="exec", ExecStart="@python@ -m reconciler.gateway",
                    User="@gateway_user@", Group="@gateway_user@", LimitNOFILE="65536",
                ),
                *_ENVIRONMENT,
                *_AGAIN,
                *changed(
                    without(
                        STRICT,
                        PrivateNetwork="It is the one that speaks to the model's API.",
                        PrivateUsers="It knows agents by the uids of their containers.",
                    ),
                    setting("RestrictAddressFamilies", "AF_UNIX AF_INET AF_INET6", "The same."),
                    setting("IPAddressDeny", (), "The same; its own configuration names the one upstream."),
                    setting("ReadWritePaths", "@state@/gateway @run@/gateway", "Its ledger and its socket."),
                ),
            ),
            "Install": _BOOT,
        },
    )  # fmt: skip


def _ui() -> Unit:
    return Unit(
        UI,
        {
            "Unit": (
                *settings(
                    Description="hyperhive: the web server", Documentation="file:@source@/README.md",
                    After=f"network.target {UI_SOCKET}",
                ),
                *_FOR_EVER,
            ),
            "Service": (
                *settings(
                    Type="exec", ExecStart="@python@ -m ui --port @ui_port@ --socket @run@/ui.sock",
                    User="@ui_user@", Group="@ui_user@",
                ),
                *_ENVIRONMENT,
                *_AGAIN,
                *changed(
                    without(STRICT, PrivateNetwork="Browsers come by TCP."),
                    setting("RestrictAddressFamilies", "AF_UNIX AF_INET", "The same."),
                    setting("IPAddressAllow", "localhost", "Browsers on this machine, and nobody else."),
                ),
            ),
            "Install": _BOOT,
        },
    )  # fmt: skip


def _slice() -> Unit:
    return Unit(
        "hive.slice",
        {
            "Unit": settings(Description="hyperhive: the agents' containers"),
            # Each agent has its own limits; a bound over all of them is the host's to set, in a drop-in.
            "Slice": settings(MemoryAccounting="yes", TasksAccounting="yes", CPUAccounting="yes"),
        },
    )
