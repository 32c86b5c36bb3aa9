"""The sandbox's command line: what hostile evaluation sees, and what it never sees."""

from __future__ import annotations

from pathlib import Path

from reconciler.effects.sandbox import Sandbox, command, system_of

BOX = Sandbox(
    read_only={"/hive/tree": Path("/srv/tree")},
    system=[Path("/usr")],
    links={"/bin": "usr/bin"},
    environment={"NIX_STATE_DIR": "/tmp/nix"},
)


def test_every_namespace_is_its_own_and_it_dies_with_its_parent() -> None:
    words = command(BOX, ["true"])
    assert {"--unshare-all", "--die-with-parent", "--new-session", "--clearenv"} <= set(words)
    assert "--share-net" not in words
    assert words[words.index("--cap-drop") + 1] == "ALL"


def test_only_what_is_named_is_bound_and_all_of_it_read_only() -> None:
    words = command(BOX, ["true"])
    bound = [(words[n + 1], words[n + 2]) for n, word in enumerate(words) if word == "--ro-bind"]
    assert bound == [("/usr", "/usr"), ("/srv/tree", "/hive/tree")]
    assert not {"--bind", "--dev-bind", "--bind-try", "--dev-bind-try"} & set(words)
    assert words[words.index("--remount-ro") + 1] == "/"


def test_the_environment_is_spelled_out() -> None:
    words = command(BOX, ["true"])
    names = {words[n + 1] for n, word in enumerate(words) if word == "--setenv"}
    assert names == {"HOME", "PATH", "LANG", "NIX_STATE_DIR"}


def test_the_program_comes_after_a_separator_so_that_it_cannot_be_an_option() -> None:
    words = command(BOX, ["--bind", "/", "/"])
    assert words[words.index("--") + 1 :] == ["--bind", "/", "/"]


def test_a_program_of_the_nix_store_needs_the_store_and_nothing_else() -> None:
    assert system_of(Path("/nix/store/abc-nix/bin/nix")) == ([Path("/nix/store")], {})
    system, _ = system_of(Path("/usr/bin/env"))
    assert Path("/usr") in system
    assert Path("/etc") not in system
