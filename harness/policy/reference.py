"""The tables of docs/bash-policy.md, from the code: `python -m harness.policy.reference` writes them anew."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from harness.policy.launchers import Row, rows
from harness.policy.writers import WRITERS

PAGE = Path(__file__).parents[2] / "docs/bash-policy.md"
_BEGIN, _END = "<!-- made by python -m harness.policy.reference -->", "<!-- end -->"


def launchers() -> Iterator[str]:
    """One line per reason: programs, forms, why."""
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows():
        kind = "program" if not row.form else row.form if row.form in {"!", "-!"} else "forms"
        found.setdefault((kind, row.why, row.subcommand), []).append(row)
    yield "| program | form | why |"
    yield "|---|---|---|"
    for (kind, why, subcommand), group in found.items():
        programs = " ".join(f"`{name}`" for name in dict.fromkeys(row.program for row in group))
        forms = " ".join(f"`{form}`" for form in dict.fromkeys(row.form for row in group))
        where = {"": "", "^": "in front of the subcommand: "}.get(subcommand, f"`{subcommand}` with ")
        shown = {
            "program": "itself",
            "!": "a subcommand other than " + " ".join(f"`{name}`" for name in sorted(group[0].harmless)),
            "-!": "any other option",
        }.get(kind, where + forms)
        yield f"| {programs} | {shown} | {why} |".replace("||", "|")


def writers() -> Iterator[str]:
    """One line per way to write."""
    found: dict[tuple[object, ...], list[str]] = {}
    for name, writer in WRITERS.items():
        found.setdefault((writer.operands, writer.options, writer.folders, writer.why), []).append(name)
    yield "| program | paths that are looked at | why |"
    yield "|---|---|---|"
    words = {
        "all": "all operands",
        "last": "the last operand",
        "but-first": "all operands but the first",
        "none": "",
        "dd": "`of=`",
        "sed": "all operands, with `-i`",
    }
    for (operands, options, folders, why), names in found.items():
        assert isinstance(options, tuple)
        assert isinstance(folders, tuple)
        looked = [words[str(operands)], *(f"`{option}`" for option in (*options, *folders))]
        yield f"| {' '.join(f'`{name}`' for name in names)} | {' '.join(filter(None, looked))} | {why} |"


def page(text: str) -> str:
    """The page with both tables put in anew."""
    for lines in (launchers(), writers()):
        before, _, rest = text.partition(_BEGIN)
        _, _, after = rest.partition(_END)
        # marked as done, so that the next round finds the next place
        text = before + "\0BEGIN\n" + "\n".join(lines) + "\n\0END" + after
    return text.replace("\0BEGIN", _BEGIN).replace("\0END", _END)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
