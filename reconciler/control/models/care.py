"""Backups and the health of the hive."""

from __future__ import annotations

from typing import Literal

from reconciler.control.models.base import Model


class BackupPart(Model):
    """One part of a backup: a database, a repository, an agent's trees. `bytes` of data."""

    name: str
    entries: int
    bytes: int


class BackupPlan(Model):
    """What a backup would hold now; `left_out` names the first 100 things that it would not."""

    parts: list[BackupPart]
    entries: int
    bytes: int
    left_out: list[str]


class Check(Model):
    """One check of `hive doctor`: what was found, and what to do about it (empty unless warn or fail)."""

    id: str
    title: str
    status: Literal["ok", "warn", "fail", "not-applicable"]
    detail: str
    remedy: str


class Health(Model):
    """All checks, in a fixed order; `offline`: made without a running hived, so that some are missing."""

    items: list[Check]
    ok: int
    warn: int
    fail: int
    offline: bool = False
