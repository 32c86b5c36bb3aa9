"""Pages that are made from code say what the code says, and the README's links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from reconciler.model import reference
from reconciler.model.activation import IN_PLACE
from reconciler.model.changes import OPTIONS

ROOT = Path(__file__).resolve().parents[2]


def test_the_reference_of_agent_nix_is_current() -> None:
    wanted = "python -m reconciler.model.reference > docs/agent-nix.md"
    assert (ROOT / "docs/agent-nix.md").read_text() == reference.text(), wanted


def test_the_table_of_effects_names_every_option_and_says_restart_of_exactly_those_that_need_one() -> None:
    table = reference.text().partition("## When a change takes effect")[2]
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| `")]
    said = {name: row[1] for row in rows for name in re.findall(r"`([\w.*]+)`", row[0])}
    for option in OPTIONS:
        group = option.partition(".")[0]
        effect = said.get(option) or said.get(f"{group}.*")
        assert effect is not None, f"{option}: add it to _TAIL of reconciler/model/reference.py"
        if effect.startswith("fixed"):
            continue
        assert (effect == "restart") == (group not in IN_PLACE), f"{option}: {effect}, says the page"


@pytest.mark.parametrize(
    "page", ["README.md", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/*.md"))]
)
def test_links_to_files_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    missing = [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]
    assert missing == []


def test_the_readme_leads_to_every_page() -> None:
    text = (ROOT / "README.md").read_text()
    assert [p.name for p in ROOT.glob("docs/*.md") if f"](docs/{p.name})" not in text] == []


def test_every_claim_of_the_boundary_names_a_test_that_exists() -> None:
    table = (ROOT / "README.md").read_text().partition("| claim | shown by |")[2].partition("\n\n")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ") and not line.startswith("|---")]
    assert len(rows) >= 8
    for row in rows:
        names = re.findall(r"`(test_\w+)`", row)
        assert names, row
        for name in names:
            found = [p for p in ROOT.glob("tests/**/*.py") if re.search(rf"\bdef {name}\b", p.read_text())]
            assert found, f"{name} of the README does not exist"
