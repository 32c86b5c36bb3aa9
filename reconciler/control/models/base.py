"""What all objects of the control API have in common."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Model(BaseModel):
    """Base of all control objects: closed and frozen; enums travel as their values."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Write(Model):
    """Body of a write. `dry_run`: all checks are made and answered as by the real thing, nothing is written;
    what would only then exist has the id 0 and no secret."""

    dry_run: bool = False


class Done(Model):
    """The request took effect."""

    ok: Literal[True] = True
