"""docs/cli.md, made from the table of verbs. `python -m reconciler.cli.reference` writes it and
docs/spec.schema.json; tests compare both."""

from __future__ import annotations

import argparse
from pathlib import Path

from reconciler.cli.grammar import Argument, Verb
from reconciler.cli.local import spec_schema
from reconciler.cli.verbs import VERBS

_HEAD = """# `hive`, the command line

Made from `reconciler/cli/verbs.py` by `python -m reconciler.cli.reference`; do not edit.

`hive VERB` speaks to `$HIVE_RUN/control.sock` (default `/run/hyperhive`), which root and the members of the
operators' group may open. Every verb that asks the hive has `--json`, which prints exactly the API's JSON
(`docs/openapi.json` describes it); an error is then `{"error": {"code", "message", "hint"}}` on standard
output, besides its words on standard error. Text from agents is printed with its control, bidirectional and
invisible characters made visible. Colours only on a terminal, and not with `NO_COLOR`.

| exit status | meaning |
|---|---|
| 0 | done |
| 1 | failed |
| 2 | wrong usage |
| 3 | waits for an approval |
"""


def text() -> str:
    """The whole page."""
    parts = [_HEAD]
    group = ""
    for verb in VERBS:
        if verb.group != group:
            group = verb.group
            parts.append(f"## {group}\n")
        parts.append(_section(verb))
    return "\n".join(parts)


def _section(verb: Verb) -> str:
    lines = [f"### `hive {verb.name}`", "", " ".join(filter(None, (verb.summary, verb.details))), ""]
    lines += [f"    {verb.usage}", ""]
    own = verb.arguments
    if own:
        lines += ["| argument | meaning |", "|---|---|", *(_row(argument) for argument in own), ""]
    if verb.examples:
        width = max(len(line) for line, _ in verb.examples)
        lines += [f"    {line.ljust(width)}   # {about}" for line, about in verb.examples] + [""]
    return "\n".join(lines)


def _row(argument: Argument) -> str:
    names = ", ".join(argument.names) if argument.is_option else argument.metavar
    value = f" {argument.metavar}" if argument.is_option and argument.metavar else ""
    return f"| `{names}{value}` | {argument.help} |"


def main(folder: Path) -> None:
    """Write both files into `folder`."""
    (folder / "cli.md").write_text(text(), encoding="utf-8")
    (folder / "spec.schema.json").write_text(spec_schema(), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m reconciler.cli.reference", description=main.__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("docs"), help="where (default docs)")
    main(parser.parse_args().folder)
