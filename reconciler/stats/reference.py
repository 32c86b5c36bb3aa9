"""`python -m reconciler.stats.reference`: writes the table of figures into docs/statistics.md, between its
two marks, from the catalogue."""

from __future__ import annotations

from pathlib import Path

from reconciler.stats import catalogue
from reconciler.stats.catalogue import KEYS, Across, Key, tool_key

PAGE = Path(__file__).resolve().parents[2] / "docs/statistics.md"
BEGIN, END = "<!-- figures: begin -->\n", "<!-- figures: end -->\n"
_ACROSS = {
    Across.SUM: "sum",
    Across.MAX: "largest",
    Across.MIN: "smallest",
    Across.TOGETHER: "all rows together",
}


def table() -> str:
    """The catalogue as a table."""
    rows = [_row(key) for key in KEYS]
    tool = tool_key("NAME")
    rows.append(
        f"| `tool_NAME` | {tool.unit} | {tool.aggregate} | {_ACROSS[tool.across]} | {tool.teller} | "
        f"calls of that tool; at most {catalogue.TOOLS_MAX} names per agent, the rest is `tool_other` |"
    )
    head = "| key | unit | in a bucket | of the hive | told by | meaning |\n|---|---|---|---|---|---|"
    return "\n".join([head, *rows, ""])


def _row(key: Key) -> str:
    across = "the hive's own" if key.hive_only else _ACROSS[key.across]
    return f"| `{key.name}` | {key.unit} | {key.aggregate} | {across} | {key.teller} | {key.meaning} |"


def page(text: str) -> str:
    """The page with its table made anew."""
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}{table()}{END}{tail}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
