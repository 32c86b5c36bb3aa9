"""The second fence around a spec: whatever evaluated it, it is what the pydantic model says, or it is
refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from reconciler.effects.protocols import Evaluation
from reconciler.errors import InvalidError, Refusal
from reconciler.model.spec import Spec

_MAX_REFUSALS = 20
_ALLOWED = {
    "network.allow": "[ ], as network access is not supported yet",
    "limits": "a size such as 4G, percent such as 200%, a count",
}


def evaluation(raw: Mapping[str, Any]) -> Evaluation:
    """The spec of raw JSON with every default filled in, and its digest.

    Raises `InvalidError` with one refusal per wrong option (20 at most), named as in `agent.nix`.
    """
    try:
        spec = Spec.model_validate(dict(raw))
    except ValidationError as error:
        refusals = tuple(
            Refusal(
                where="hyperhive." + ".".join(str(part) for part in problem["loc"]),
                why=f"{problem['msg']}, not {_shown(problem['input'])}",
                allowed=_allowed(problem["loc"]),
            )
            for problem in error.errors(include_url=False)[:_MAX_REFUSALS]
        )
        raise refused(refusals) from error
    full = spec.model_dump(mode="json")
    return Evaluation(spec=spec, spec_json=full, digest=digest(full))


def refused(refusals: tuple[Refusal, ...]) -> InvalidError:
    """The error for wrong options; its message holds all of them, one per line."""
    lines = [
        f"{refusal.where}: {refusal.why}" + (f" (allowed: {refusal.allowed})" if refusal.allowed else "")
        for refusal in refusals
    ]
    return InvalidError("agent.nix is refused: " + "\n".join(lines), refusals)


def digest(spec_json: Mapping[str, Any]) -> str:
    """sha256 (hex) of the canonical JSON: sorted keys, no spaces, UTF-8."""
    text = json.dumps(spec_json, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _allowed(place: tuple[int | str, ...]) -> str:
    names = [str(part) for part in place]
    return _ALLOWED.get(".".join(names[:2]), _ALLOWED.get(names[0], "") if names else "")


def _shown(value: object) -> str:
    text = json.dumps(value, default=repr, ensure_ascii=True)
    return text if len(text) <= 100 else text[:97] + "..."
