"""The JSON Schemas of the wire models, one file per model in `schemas/`, checked in.

A change of the protocol is therefore visible in a diff; a test compares the files with the models.
`python -m harness.wire.schemas` writes them anew.
"""

from __future__ import annotations

import json
from pathlib import Path

from harness.wire.models import MODELS, WIRE_VERSION

FOLDER = Path(__file__).parent / "schemas"


def rendered() -> dict[str, str]:
    """File name → text of every schema, in the order of the models."""
    texts = {}
    for model in MODELS:
        schema = {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "$id": f"urn:hyperhive:wire:{WIRE_VERSION}:{model.__name__}",
            **model.model_json_schema(),
        }
        texts[f"{model.__name__}.json"] = (
            json.dumps(schema, indent=2, ensure_ascii=False, sort_keys=True) + "\n"
        )
    return texts


def write(folder: Path = FOLDER) -> None:
    """Makes `folder` hold exactly the schemas of today's models."""
    texts = rendered()
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.json"):
        if old.name not in texts:
            old.unlink()
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()
