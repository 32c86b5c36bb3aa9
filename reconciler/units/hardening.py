"""The strictest set of settings that a service of the hive starts from. Every relaxation is named in
`catalogue` with its reason, which stands in the unit file, too."""

from __future__ import annotations

from reconciler.units.model import setting, settings

STRICT = (
    *settings(
        AmbientCapabilities="",
        CapabilityBoundingSet="",
        DevicePolicy="closed",
        KeyringMode="private",
        LimitCORE="0",
        LockPersonality="yes",
        MemoryDenyWriteExecute="yes",
        NoNewPrivileges="yes",
        PrivateDevices="yes",
        PrivateIPC="yes",
        PrivateMounts="yes",
        PrivateNetwork="yes",
        PrivateTmp="yes",
        PrivateUsers="yes",
        ProcSubset="pid",
        ProtectClock="yes",
        ProtectControlGroups="yes",
        ProtectHome="yes",
        ProtectHostname="yes",
        ProtectKernelLogs="yes",
        ProtectKernelModules="yes",
        ProtectKernelTunables="yes",
        ProtectProc="invisible",
        ProtectSystem="strict",
        RemoveIPC="yes",
        RestrictAddressFamilies="AF_UNIX",
        RestrictNamespaces="yes",
        RestrictRealtime="yes",
        RestrictSUIDSGID="yes",
        SystemCallArchitectures="native",
        SystemCallErrorNumber="EPERM",
    ),
    setting("SystemCallFilter", ("@system-service", "~@privileged @resources")),
    *settings(IPAddressDeny="any", UMask="0077"),
)
