"""The host's configuration of the hive: one JSON file, `$HIVE_CONFIG` (default /etc/hyperhive/config.json).

Every field has a default, so an absent file is a valid configuration. `hive check-config FILE` validates it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from reconciler.errors import OperatorError

DEFAULT_PATH = Path("/etc/hyperhive/config.json")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class UidRange(_Part):
    """Host uids that agents' ranges are taken from, `start` inclusive, `end` exclusive; multiples of
    65536."""

    start: Annotated[int, Field(ge=65536, multiple_of=65536)] = 1_048_576
    end: Annotated[int, Field(multiple_of=65536, le=4_294_901_760)] = 1_048_576 + 256 * 65536


class Gateway(_Part):
    """Upstream of the model gateway: `https://…`, `http://127.0.0.1:…` or `unix:/path` (the scripted
    model)."""

    upstream: str = "https://api.anthropic.com"
    label: str = "the Anthropic API"
    credential_file: str | None = None
    credential_kind: Literal["api-key", "bearer"] = "api-key"
    allowed_models: list[str] = ["haiku", "sonnet", "opus", "fable"]


class Budget(_Part):
    """What the hive may spend, all agents together: dollars of the host-local day (None: no limit), and
    tokens that no turn of any agent may exceed. At the share `warn_at` of a day's budget, the hive's or an
    agent's, the operator is told."""

    usd_per_day: Annotated[float, Field(gt=0, le=1_000_000)] | None = None
    tokens_per_turn: Annotated[int, Field(gt=0, le=1_000_000_000)] | None = None
    warn_at: Annotated[float, Field(gt=0, lt=1)] = 0.8
    prices_max_age_days: Annotated[int, Field(ge=1, le=3650)] = 90


class Harness(_Part):
    """Where the harness's package and its virtual environment lie on the bare platform."""

    package: str = "/opt/hyperhive/harness"
    venv: str = "/opt/hyperhive/.venv-harness"


class Watchdog(_Part):
    """How long a turn may be silent before it is given up, in seconds: until the model's first byte, between
    two bytes, and while a tool runs. null: the harness's own limits (420, 420, 900)."""

    first_byte_s: Annotated[float, Field(ge=1, le=86_400)] | None = None
    next_byte_s: Annotated[float, Field(ge=1, le=86_400)] | None = None
    tool_s: Annotated[float, Field(ge=1, le=86_400)] | None = None


# Full reads without a pause would leave nobody else any time; with too long a one, what no signal
# told of would stay as it is.
RESYNC_LEAST_S, RESYNC_MOST_S = 0.1, 3600.0


class Timeouts(_Part):
    """Deadlines in seconds. From its start a new generation has `hello_s` to say hello and `ready_s` to take
    messages. Every `resync_s` all agents are looked at, whatever nobody was told of."""

    hello_s: Annotated[float, Field(gt=0)] = 20.0
    ready_s: Annotated[float, Field(gt=0)] = 180.0
    examine_s: Annotated[float, Field(gt=0)] = 20.0
    build_s: Annotated[float, Field(gt=0)] = 1800.0
    resync_s: Annotated[float, Field(ge=RESYNC_LEAST_S, le=RESYNC_MOST_S)] = 10.0


class Loops(_Part):
    """How many messages agents may pass to each other without a word of the operator before they are
    slowed, and before they are held until the operator decides."""

    slow_after: Annotated[int, Field(ge=1, le=100_000)] = 24
    hold_after: Annotated[int, Field(ge=1, le=100_000)] = 48

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.hold_after < self.slow_after:
            raise ValueError("hold_after must not be smaller than slow_after")
        return self


class Sessions(_Part):
    """Claude Codes that stay in memory between turns: at most `resident_max` at once (null: as many as half
    of the host's memory holds), each until its agent idled for `idle_s` seconds."""

    resident_max: Annotated[int, Field(ge=1, le=10_000)] | None = None
    idle_s: Annotated[float, Field(ge=1, le=604_800)] = 900.0


Days = Annotated[int, Field(ge=1, le=3650)]


class Retention(_Part):
    """How many days history is kept. What is in use, or was approved, is kept whatever its age; the audit
    chain and proposals are never pruned.

    `messages_days` is for messages that were consumed or read, `turns_days` for turns that ended. Transcripts
    go before their time when events.db holds more than `history_max_mib`. Figures are rolled up to hours
    after `stats_raw_days`.
    """

    events_days: Days = 90
    transcripts_days: Days = 30
    build_logs_days: Days = 90
    stats_days: Days = 90
    stats_raw_days: Days = 3
    messages_days: Days = 30
    turns_days: Days = 30
    questions_days: Days = 90
    history_max_mib: Annotated[int, Field(ge=64, le=16 * 1024 * 1024)] = 20 * 1024


class Metrics(_Part):
    """Statistics: how often levels (memory, notes, inbox) are sampled, and the file with the token by which a
    monitor may read /metrics without a login (none: it may not)."""

    sample_s: Annotated[float, Field(ge=5, le=3600)] = 60.0
    token_file: str | None = None


class Config(_Part):
    """The whole configuration."""

    platform: Literal["bare", "nixos"] = "bare"
    driver: Literal["shim", "systemd"] = "shim"
    state_dir: str = os.environ.get("HIVE_STATE", "/var/lib/hyperhive")
    run_dir: str = os.environ.get("HIVE_RUN", "/run/hyperhive")
    modules: str = "/opt/hyperhive/modules"
    ui_user: str = "hive-ui"
    gateway_user: str = "hive-gateway"
    build_user: str = "hive-build"
    operator_group: str = "hive"
    ui_port: Annotated[int, Field(ge=1, le=65535)] = 7000
    uid_range: UidRange = UidRange()
    gateway: Gateway = Gateway()
    budget: Budget = Budget()
    harness: Harness = Harness()
    timeouts: Timeouts = Timeouts()
    retention: Retention = Retention()
    loops: Loops = Loops()
    sessions: Sessions = Sessions()
    watchdog: Watchdog = Watchdog()
    metrics: Metrics = Metrics()
    parallel_builds: Annotated[int, Field(ge=1, le=64)] = 2


def load(path: Path | None = None) -> Config:
    """The configuration at `path`, `$HIVE_CONFIG`, or the default place; `OperatorError` names the field
    that is wrong."""
    where = path or Path(os.environ.get("HIVE_CONFIG", str(DEFAULT_PATH)))
    if path is None and not where.exists():
        return Config()
    try:
        return Config.model_validate(json.loads(where.read_text()))
    except OSError as error:
        raise OperatorError(f"cannot read the configuration {where}: {error.strerror}") from error
    except ValueError as error:
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            place = ".".join(str(p) for p in first["loc"])
            raise OperatorError(
                f"{where}: {place}: {first['msg']}", hint="see `hive check-config --help`"
            ) from error
        raise OperatorError(f"{where} is no JSON: {error}") from error
