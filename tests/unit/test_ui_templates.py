"""Rules over the templates and the styles themselves, so that a careless line fails here and not in a
browser."""

from __future__ import annotations

import re
from pathlib import Path

import jinja2
import pytest

from ui import assets, render

TEMPLATES = sorted(render.TEMPLATE_ROOT.rglob("*.html"))
SCRIPTS = sorted(p for p in assets.ROOT.glob("*.js"))
STYLES = sorted(p for p in assets.ROOT.glob("*.css"))


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda p: p.name)
@pytest.mark.parametrize(
    ("what", "pattern"),
    [
        ("text that is not escaped", r"\|\s*safe|autoescape|Markup|\|\s*xmlattr"),
        ("an inline style", r"\sstyle\s*=|<style"),
        (
            "an inline script",
            r"<script(?![^>]*\ssrc=)|\son[a-z]+\s*=|javascript:|hx-on|hx-vals\s*=\s*['\"]?js",
        ),
        ("another host", r"(?:src|href|action)\s*=\s*['\"](?:https?:)?//"),
        ("an attribute without quotes", r"\s[a-z-]+=\{\{"),
    ],
)
def test_no_template_has(path: Path, what: str, pattern: str) -> None:
    text = re.sub(r"\{#.*?#\}", "", path.read_text(), flags=re.DOTALL)
    assert not re.search(pattern, text), f"{path.name} has {what}"


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda p: p.name)
def test_every_form_that_writes_carries_the_token(path: Path) -> None:
    for form in re.findall(r"<form[^>]*method=\"post\".*?</form>", path.read_text(), flags=re.DOTALL):
        assert "m.csrf()" in form or 'action="/login/' in form, form[:120]


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda p: p.name)
def test_every_form_that_the_script_posts_works_without_it(path: Path) -> None:
    for form in re.findall(r"<form[^>]*hx-post[^>]*>", path.read_text()):
        action, scripted = re.search(r'\saction="([^"]*)"', form), re.search(r'hx-post="([^"]*)"', form)
        assert action is not None, form
        assert scripted is not None, form
        assert action[1] == scripted[1], form
        assert 'method="post"' in form


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_no_script_makes_code_or_markup_of_text(path: Path) -> None:
    assert not re.search(
        r"\beval\b|new Function|innerHTML|outerHTML|insertAdjacentHTML|document\.write", path.read_text()
    )


@pytest.mark.parametrize("path", STYLES, ids=lambda p: p.name)
def test_styles_load_only_our_own_files(path: Path) -> None:
    text = path.read_text()
    assert "@import" not in text
    for address in re.findall(r"url\(\"?([^)\"]*)", text):
        assert address.startswith("vendor/"), address


def test_printed_text_is_escaped_and_made_visible_even_in_attributes() -> None:
    env = render.environment()
    template = env.from_string('<a title="{{ x }}">{{ x }}</a>{{ [x]|join }}{{ x|first_line }}')
    shown = template.render(x="<b>\u202e\"'\x1b")
    assert "<b>" not in shown
    assert "\u202e" not in shown
    assert "\x1b" not in shown
    assert shown.count("⟪U+202E⟫") == 4


def test_a_name_that_does_not_exist_is_an_error() -> None:
    env = render.environment()
    with pytest.raises(jinja2.UndefinedError):
        env.from_string("{{ nothing }}").render()


# The colours: pairs in tokens.css, measured as WCAG does.
def _tokens() -> dict[str, tuple[str, str]]:
    text = (assets.ROOT / "tokens.css").read_text()
    pairs = re.findall(r"--([a-z-]+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\)", text)
    return {name: (light, dark) for name, light, dark in pairs}


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _contrast(one: str, other: str) -> float:
    high, low = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize(
    ("colour", "grounds", "least"),
    [
        ("text", ("ground", "panel", "raised", "accent-wash", "good-wash", "bad-wash", "warn-wash"), 7.0),
        ("dim", ("ground", "panel"), 7.0),
        ("dim", ("raised",), 4.5),
        ("faint", ("ground", "panel"), 3.0),
        ("accent", ("ground", "panel", "accent-wash"), 4.5),
        ("warn", ("ground", "panel", "warn-wash"), 4.5),
        ("bad", ("ground", "panel", "bad-wash"), 4.5),
        ("good", ("ground", "panel", "good-wash"), 4.5),
    ],
)
def test_text_has_enough_contrast(theme: int, colour: str, grounds: tuple[str, ...], least: float) -> None:
    tokens = _tokens()
    for ground in grounds:
        assert _contrast(tokens[colour][theme], tokens[ground][theme]) >= least, f"{colour} on {ground}"


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_the_primary_button_can_be_read(theme: int) -> None:
    assert _contrast("#ffffff", _tokens()["accent-fill"][theme]) >= 4.5
