"""Backups of the hive."""

from __future__ import annotations

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
