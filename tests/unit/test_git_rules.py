"""What a bundle's header and the files of a commit may be."""

from __future__ import annotations

import contextlib
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.effects.git import trees
from reconciler.effects.git.bundles import HEADER_MAX_BYTES, OBJECTS_MAX, PEEK_BYTES, parse_header
from reconciler.effects.protocols import TreeEntry
from reconciler.errors import InvalidError
from reconciler.model.names import Commit

ID = "a" * 40
COMMIT = Commit(ID)
PACK = b"PACK\0\0\0\2" + (7).to_bytes(4, "big")


def header(*lines: bytes, version: bytes = b"# v2 git bundle", pack: bytes = PACK) -> bytes:
    return b"\n".join([version, *lines, b"", pack])[:PEEK_BYTES]


def refused(start: bytes) -> str:
    with pytest.raises(InvalidError) as caught:
        parse_header(start, COMMIT)
    return caught.value.message


def test_one_ref_with_the_named_commit_is_taken() -> None:
    start = header(f"{ID} refs/heads/main".encode())
    found = parse_header(start, COMMIT)
    assert (found.commit, found.objects) == (COMMIT, 7)
    assert start[found.pack_offset :] == PACK
    assert parse_header(header(f"{ID} HEAD".encode()), COMMIT).objects == 7
    third = header(b"@object-format=sha1", f"{ID} HEAD".encode(), version=b"# v3 git bundle")
    assert parse_header(third, COMMIT).objects == 7


@pytest.mark.parametrize(
    ("start", "why"),
    [
        (b"", "signature"),
        (b"PACK\0\0\0\2", "signature"),
        (header(f"{ID} HEAD".encode())[:30], "no end"),
        (header(*[f"{ID} refs/heads/b{n}".encode() for n in range(100_000)]), "longer than 4096"),
        (header(f"{ID} HEAD".encode(), f"{ID} refs/heads/main".encode()), "2 refs"),
        (header(), "0 refs"),
        (header(b"-" + ID.encode() + b" old", f"{ID} HEAD".encode()), "prerequisites"),
        (header(f"{'b' * 40} HEAD".encode()), "not the commit"),
        (header(b"main HEAD"), "neither a ref"),
        (header(f"{ID} refs/heads/a b".encode()), "neither a ref"),
        (header(f"{ID} refs/heads/\x01".encode()), "neither a ref"),
        (header(f"{ID} HEAD".encode(), version=b"# v2 git bundle!"), "something after it"),
        (header(b"@filter=blob:none", f"{ID} HEAD".encode(), version=b"# v3 git bundle"), "capability"),
        (header(b"@object-format=sha1", f"{ID} HEAD".encode()), "neither a ref"),
        (header(f"{ID} HEAD".encode(), pack=b""), "no pack"),
        (header(f"{ID} HEAD".encode(), pack=b"KCAP" + PACK[4:]), "no pack"),
        (header(f"{ID} HEAD".encode(), pack=PACK[:8] + b"\0\0\0\0"), "0 objects"),
        (header(f"{ID} HEAD".encode(), pack=PACK[:8] + b"\xff" * 4), f"1 to {OBJECTS_MAX}"),
    ],
)
def test_every_other_header_is_refused_with_the_reason(start: bytes, why: str) -> None:
    assert why in refused(start)


@given(st.binary(max_size=HEADER_MAX_BYTES + 100))
def test_no_header_makes_the_parser_fail_otherwise(junk: bytes) -> None:
    for start in (junk, b"# v2 git bundle\n" + junk, header(junk)):
        with contextlib.suppress(InvalidError):
            assert parse_header(start, COMMIT).objects > 0


# ------------------------------------------------------------------------------------------------ trees
def entry(path: str, mode: str = "100644", size: int = 5, blob: str = "b" * 40) -> TreeEntry:
    return TreeEntry(path, mode, blob, size)


def faults(*entries: TreeEntry, **targets: bytes) -> str:
    """Where and why, joined; empty when the tree is taken."""
    try:
        trees.check(COMMIT, entries, targets)
    except InvalidError as error:
        return "\n".join(f"{refusal.where}: {refusal.why}" for refusal in error.refusals)
    return ""


def test_an_ordinary_tree_is_taken() -> None:
    paths = [
        "agent.nix",
        "flake.nix",
        "flake.lock",
        "lib/a.nix",
        "lib/b.nix",
        "grüße/日本.md",
        ".gitignore",
        "git.nix",
    ]
    assert faults(*[entry(path) for path in paths], entry("bin/run", "100755")) == ""


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("../../etc", "not a name"),
        ("a/../b", "not a name"),
        ("a//b", "not a name"),
        ("./a", "not a name"),
        (".git/config", "own directory"),
        (".GIT/config", "own directory"),
        ("x/.Git/hooks/pre-commit", "own directory"),
        (".g\u200cit/config", "own directory"),
        ("．git/config", "own directory"),
        (".git . /config", "own directory"),
        (".git::$INDEX_ALLOCATION/x", "own directory"),
        ("GIT~1/config", "own directory"),
        (".gitattributes", "attributes"),
        ("sub/.GitAttributes", "attributes"),
        (".gitmodules", "submodules"),
        ("a\nb", "control, invisible or quoting"),
        ("a\u202eb", "control, invisible or quoting"),
        ('a"b', "control, invisible or quoting"),
        ("a\\b", "control, invisible or quoting"),
        ("a\udcffb", "not UTF-8"),
        ("x" * 201, "longer than 200"),
        ("/".join(["d"] * 33), "deeper than 32"),
        ("/".join(["d" * 150] * 8), "longer than 1024"),
    ],
)
def test_bad_paths_are_refused(path: str, why: str) -> None:
    assert why in faults(entry(path))


def test_the_path_is_shown_without_its_tricks() -> None:
    assert faults(entry("a\u202eb\x1b[2J")).startswith("a⟨U+202E⟩b␛[2J: ")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("agent.nix", "Agent.nix"),
        ("caf\u00e9", "cafe\u0301"),
        ("lib/a", "LIB/b"),
        ("ﬁle", "file"),
        ("stra\u00dfe", "STRASSE"),
        ("x/a/1", "x/A"),
    ],
)
def test_names_that_differ_only_in_case_or_form_are_refused(one: str, other: str) -> None:
    assert unicodedata.is_normalized("NFC", one)
    assert "only in case or normal form" in faults(entry(one), entry(other))


def test_modes_sizes_and_counts_are_bounded() -> None:
    assert "submodules" in faults(entry("sub", trees.SUBMODULE, 0))
    assert "its mode" in faults(entry("a", "100664"))
    assert "bytes" in faults(entry("a", size=trees.FILE_MAX_BYTES + 1))
    assert "in all" in faults(*[entry(f"f{n}", size=trees.FILE_MAX_BYTES) for n in range(65)])
    assert "5001 files" in faults(*[entry(f"f{n}") for n in range(trees.FILES_MAX + 1)])


def test_reasons_are_bounded_in_number() -> None:
    found = faults(*[entry(f"{n}/.git") for n in range(100)])
    assert len(found.splitlines()) == trees.REFUSALS_MAX


@pytest.mark.parametrize(
    ("path", "target"), [("a", b"b"), ("a", b"x/y"), ("d/a", b"../b"), ("d/e/a", b"../../b"), ("d/a", b"..")]
)
def test_links_that_stay_inside_are_taken(path: str, target: bytes) -> None:
    assert trees.link_fault(path, target) is None
    assert faults(entry(path, trees.LINK, len(target), "c" * 40), **{"c" * 40: target}) == ""


@pytest.mark.parametrize(
    ("path", "target", "why"),
    [
        ("a", b"/etc/shadow", "absolute"),
        ("a", b"../b", "out of the tree"),
        ("d/a", b"../../etc", "out of the tree"),
        ("d/a", b"e/../../../etc", "plain relative"),
        ("d/a", b"link/../x", "plain relative"),
        ("a", b"", "1 to 1024"),
        ("a", b"x" * 2000, "1 to 1024"),
        ("a", b".git/config", "plain relative"),
        ("a", b"x//y", "plain relative"),
        ("a", None, "1 to 1024"),
    ],
)
def test_links_out_of_the_tree_are_refused(path: str, target: bytes | None, why: str) -> None:
    assert why in (trees.link_fault(path, target) or "")


@given(st.text(max_size=40), st.binary(max_size=40))
def test_any_name_and_target_is_judged(path: str, target: bytes) -> None:
    faults(entry(path), entry(f"{path}2", trees.LINK, blob="c" * 40), **{"c" * 40: target})
