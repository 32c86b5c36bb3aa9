"""What all objects of the control API have in common."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Model(BaseModel):
    """Base of all control objects: closed and frozen; enums travel as their values."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Done(Model):
    """The request took effect."""

    ok: Literal[True] = True
