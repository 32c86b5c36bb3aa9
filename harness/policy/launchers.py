"""Commands whose arguments start other commands, so that a pattern for them would allow anything. Data, and
one look-up.

A launcher is refused unless a pattern spells it out: `git *` does not allow `git -c core.pager=id log`; `git
-c *` does. The list cannot be complete, for any program may start others; it holds what is common and what
git, find, tar and nix offer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Programs that exist to run another command or a script: a pattern must begin with their name.
PROGRAMS = _words(
    """
    ash awk bash builtin busybox chroot chrt command cpulimit csh dash doas emacs env eval exec expect
    fakeroot fish flock gawk gdb ionice ksh ld.so lua man mawk nawk nice node nohup npx nsenter parallel
    perl php pkexec pypy3 python python3 rbash ruby run-parts runuser script sed setarch setpriv setsid sh
    socat source . ssh start-stop-daemon stdbuf strace su sudo systemd-run taskset tclsh timeout trap
    unshare vi vim watch xargs zsh alias hash enable set shopt
    """
)

# Options (and words) that start programs or change which program is started. A long option also counts when
# it is abbreviated or has `=value`; a short one also inside a cluster (`-xIfoo`).
FORMS: dict[str, tuple[str, ...]] = {
    "find": ("-exec", "-execdir", "-ok", "-okdir", "-delete", "-fprint", "-fprint0", "-fprintf", "-fls"),
    "fd": ("-x", "-X", "--exec", "--exec-batch"),
    "fdfind": ("-x", "-X", "--exec", "--exec-batch"),
    "rg": ("--pre", "--hostname-bin"),
    "sort": ("--compress-program",),
    "split": ("--filter",),
    "tar": (
        "-I", "-F", "--use-compress-program", "--to-command", "--checkpoint-action", "--info-script",
        "--new-volume-script", "--rsh-command", "--rmt-command",
    ),
    "rsync": ("-e", "--rsh", "--rsync-path"),
    "zip": ("-T", "-TT", "--unzip-command"),
    "curl": ("-K", "--config"),
    "wget": ("--use-askpass", "--config", "-e", "--execute"),
    "nix": (
        "run", "shell", "develop", "repl", "fmt", "upgrade-nix", "edit", "daemon", "copy", "--option",
        "--builders", "--post-build-hook", "--build-hook", "--diff-hook", "--plugin-files", "--store",
        "--eval-store", "--pre-build-hook", "--accept-flake-config", "--extra-plugin-files", "--editor",
    ),
    "nix-shell": ("--run", "--command", "-i"),
    "make": ("--eval", "-E"),
}  # fmt: skip

_GIT_OPTIONS = ("-c", "--config-env", "--exec-path")  # before the subcommand
_GIT_PLAIN_OPTIONS = frozenset({
    "--no-pager", "-P", "--no-replace-objects", "--literal-pathspecs", "--no-optional-locks",
})  # fmt: skip
_GIT_VALUE_OPTIONS = frozenset({"-C"})
# Subcommands that run nothing but git. Any other (aliases, git-foo on the PATH, bisect run, difftool …) must
# be named.
_GIT_KNOWN = _words(
    """
    add am annotate apply archive blame branch bundle cat-file check-attr check-ignore checkout cherry
    cherry-pick clean clone commit commit-tree count-objects describe diff diff-files diff-index diff-tree
    fetch for-each-ref format-patch fsck gc grep hash-object init log ls-files ls-remote ls-tree merge
    merge-base merge-tree mktree mv name-rev notes patch-id prune pull push range-diff read-tree rebase
    reflog remote repack reset restore rev-list rev-parse revert rm shortlog show show-branch show-ref
    sparse-checkout stash status stripspace switch symbolic-ref tag update-index update-ref var
    verify-commit verify-pack verify-tag version whatchanged worktree write-tree
    """
)
# Of any subcommand: what writes a file of any content (`.git/config` names programs), or starts a program.
GIT_ANY_FORMS = ("--output", "--ext-diff", "--upload-pack", "--receive-pack", "--exec")
# Also what keeps settings in a folder that is not `.git`, where the file tools could edit them.
GIT_FORMS: dict[str, tuple[str, ...]] = {
    "archive": ("-o", "--remote"),
    "cherry-pick": ("--strategy",),
    "clone": ("-c", "--config", "-u", "--template", "--separate-git-dir", "--bare", "--mirror"),
    "format-patch": ("-o", "--output-directory"),
    "grep": ("-O", "--open-files-in-pager"),
    "init": ("--template", "--separate-git-dir", "--bare"),
    "pull": ("-s", "--strategy"),
    "merge": ("-s", "--strategy"),
    "rebase": ("-x", "-s", "--strategy"),
    "revert": ("--strategy",),
}


def launching_words(words: Sequence[str]) -> tuple[str, ...]:
    """The words that make this command a launcher, as a pattern must spell them; none if it is not one."""
    name = words[0].rsplit("/", 1)[-1]
    if name == "git":
        return _git(words)
    if name == "cd":
        return tuple(word for word in words[1:] if _is_in_git_folder(word))
    if name in PROGRAMS or name.startswith(("python3.", "perl5", "lua5", "ld-linux", "git-")):
        return (words[0],)
    forms = FORMS.get(name, ())
    old_style = {words[1]} if name == "tar" and len(words) > 1 and words[1][:1] != "-" else set()
    return tuple(word for word in words[1:] if _is_one_of(f"-{word}" if word in old_style else word, forms))


def _git(words: Sequence[str]) -> tuple[str, ...]:
    """Words of git's own options, then the subcommand, then that one's options."""
    found: list[str] = []
    elsewhere: list[str] = []
    at = 1
    while at < len(words) and words[at].startswith("-"):
        word = words[at]
        if word in _GIT_VALUE_OPTIONS:
            at += 1
            elsewhere += words[at : at + 1]
        elif word not in _GIT_PLAIN_OPTIONS and word not in {"--version", "--help", "-v", "-h"}:
            # -c and --exec-path among them; and whatever is unknown here, since it may take the next word as
            # its value
            found.append(word)
            at += 1 if word in _GIT_OPTIONS else 0
        at += 1
    if at < len(words):
        subcommand = words[at]
        if subcommand not in _GIT_KNOWN:
            found.append(subcommand)
        # There `apply` sees a plain folder and patches git's own settings; a link can lead there.
        found += [word for word in elsewhere if _is_in_git_folder(word)]
        if elsewhere and subcommand == "apply":
            found.append(subcommand)
        forms = GIT_ANY_FORMS + GIT_FORMS.get(subcommand, ())
        found += [word for word in words[at + 1 :] if _is_one_of(word, forms)]
        found += [word for word in words[at + 1 :] if word.startswith("ext::")]
    return tuple(found)


def _is_in_git_folder(path: str) -> bool:
    return ".git" in path.casefold().split("/")


def _is_one_of(word: str, options: tuple[str, ...]) -> bool:
    """Whether a word is one of the options: itself, with a value, abbreviated, or in a cluster of short
    ones."""
    for option in options:
        if word == option or word.startswith(option + "="):
            return True
        if option.startswith("--"):
            stem = word.split("=", 1)[0]
            if len(stem) > 2 and option.startswith(stem):
                return True
        elif re.fullmatch("-[^-]", option) and re.match("-[^-]{2}", word) and option[1] in word:
            return True
    return False
