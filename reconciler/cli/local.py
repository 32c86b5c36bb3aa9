"""Verbs that need no hive: the schema, checking a configuration, the version."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

from reconciler import __version__
from reconciler.cli.console import Console
from reconciler.cli.failure import Exit, Failure


def spec_schema() -> str:
    """The JSON Schema of an agent's settings as text; docs/spec.schema.json is a copy."""
    from reconciler.model.spec import Spec

    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:hyperhive:spec",
        **Spec.model_json_schema(),
    }
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def schema(_options: Namespace, console: Console) -> int:
    """`hive schema`"""
    console.out.write(spec_schema())
    return Exit.DONE


def check_config(options: Namespace, console: Console) -> int:
    """`hive check-config [FILE]`"""
    from reconciler.config import load
    from reconciler.errors import HiveError

    try:
        config = load(None if options.file is None else Path(options.file))
    except HiveError as error:
        raise Failure(error.message, error.hint, code=error.code) from error
    if options.json:
        console.document(config.model_dump(mode="json"))
    else:
        console.say(f"{options.file or 'the configuration'} is valid")
    return Exit.DONE


def version(options: Namespace, console: Console) -> int:
    """`hive version`"""
    if options.json:
        console.document({"version": __version__})
    else:
        console.say(f"hyperhive {__version__}")
    return Exit.DONE
