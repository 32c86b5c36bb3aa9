"""How much room trees take."""

from __future__ import annotations

import os
from pathlib import Path

from reconciler.sizes import size_of


def test_files_count_once_whatever_their_names_and_links_are_not_followed(tmp_path: Path) -> None:
    kept, other = tmp_path / "kept", tmp_path / "other"
    (kept / "deep").mkdir(parents=True)
    other.mkdir()
    (other / "big").write_bytes(b"x" * 4_000_000)
    (kept / "file").write_bytes(b"x" * 100_000)
    before = size_of([kept])
    os.link(kept / "file", kept / "deep" / "again")
    (kept / "loop").symlink_to(kept)
    (kept / "away").symlink_to(other)
    found = size_of([kept, tmp_path / "nothing"])
    assert found.whole
    assert 100_000 <= before.used <= found.used < before.used + 50_000


def test_a_tree_without_end_is_measured_as_far_as_it_goes(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / str(number)).write_bytes(b"x" * 5000)
    found = size_of([tmp_path], entries_max=10)
    assert not found.whole
    assert 0 < found.used < size_of([tmp_path]).used
    assert not size_of([tmp_path], busy_max_s=-1.0).whole


def test_very_deep_folders_are_no_trouble(tmp_path: Path) -> None:
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=here)
        further = os.open("d" * 250, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = further
    os.close(here)
    found = size_of([tmp_path])
    assert not found.whole, "a path of that length cannot be opened by name"
