"""How risky one setting is when it grows: the rules behind the table of options in docs/agent-nix.md.

Pure. Each rule answers with a risk and the reason that the approval page shows beside it. Where a rule cannot
know (an unknown model, a pattern with a wildcard for a program) it takes the worse class.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from reconciler.model.spec import ALIASES
from reconciler.model.states import RISK_ORDER, Risk

# Programs that run code they are given: allowing one allows everything.
INTERPRETERS = frozenset({
    "ash", "awk", "bash", "bun", "busybox", "csh", "dash", "deno", "emacs", "ex", "expect", "fish",
    "gawk", "ghci", "groovy", "irb", "ipython", "java", "jshell", "julia", "ksh", "lua", "luajit", "m4",
    "mawk", "nawk", "node", "nodejs", "nu", "ocaml", "octave", "perl", "php", "pwsh", "pypy", "python", "r",
    "rbash", "rscript", "ruby", "scala", "sed", "sh", "tclsh", "vi", "view", "vim", "nvim", "wish", "zsh",
})  # fmt: skip
# Programs that run another program named in their arguments or in a file of the work tree.
LAUNCHERS = frozenset({
    ".", "alias", "at", "batch", "bazel", "builtin", "bundle", "cargo", "chroot", "chrt", "cmake", "command",
    "composer", "cpulimit", "crontab", "doas", "docker", "enable", "entr", "env", "eval", "exec", "fakeroot",
    "flock", "gdb", "go", "gradle", "hash", "ionice", "just", "ld.so", "ltrace", "make", "man", "mvn",
    "ninja", "nice", "nix-shell", "nohup", "npm", "npx", "nsenter", "parallel", "pip", "pipx", "pkexec",
    "pnpm", "podman", "pytest", "rake", "rsync", "run-parts", "runuser", "screen", "script", "set",
    "setarch", "setpriv", "setsid", "shopt", "socat", "source", "ssh", "start-stop-daemon", "stdbuf",
    "strace", "su", "sudo", "systemd-run", "taskset", "time", "timeout", "tmux", "tox", "trap", "unshare",
    "uv", "uvx", "watch", "xargs", "yarn",
})  # fmt: skip
# First arguments by which an otherwise plain program runs what the caller writes, or what a file names that
# the caller can write so. Whatever harness/policy/launchers.py wants to be spelled out is among them.
_LAUNCHING_ARGUMENTS = {
    "curl": re.compile(r"(^| )(-K|--config)\b"),
    "fd": re.compile(r"(^| )(-x|-X|--exec)\b"),
    "fdfind": re.compile(r"(^| )(-x|-X|--exec)\b"),
    "find": re.compile(r"-(exec|execdir|ok|okdir|delete|fprint0?|fprintf|fls)\b"),
    "git": re.compile(
        r"(^| )(-c|--config-env|--exec|-C|config|filter-branch|bisect|submodule|difftool|mergetool"
        r"|--(bare|config|ext-diff|mirror|open-files-in-pager|output|receive-pack|remote|separate-git-dir"
        r"|strategy|template|upload-pack))\b"
        r"|\b((archive|format-patch) (.* )?-o|clone (.* )?-u|grep (.* )?-O|(merge|pull|rebase) (.* )?-s"
        r"|rebase (.* )?-x)\b"
    ),
    "nix": re.compile(
        r"(^| )(run|shell|develop|repl|fmt|upgrade-nix|edit|daemon|copy|--(impure|option|builders"
        r"|[a-z-]+-hook|(extra-)?plugin-files|(eval-)?store|accept-flake-config|editor))\b"
    ),
    "rg": re.compile(r"(^| )--(pre|hostname-bin)\b"),
    "sort": re.compile(r"--compress-program"),
    "split": re.compile(r"(^| )--filter\b"),
    "tar": re.compile(
        r"--(checkpoint-action|to-command|use-compress-program|info-script|new-volume-script|rsh-command"
        r"|rmt-command)|(^| )-[IF]\b"
    ),
    "wget": re.compile(r"(^| )(-e|--execute|--config|--use-askpass)\b"),
    "zip": re.compile(r"(^| )(-TT?|--unzip-command)\b"),
}
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
_VERSION = re.compile(r"[-0-9.]+$")


def highest(risks: Iterable[Risk]) -> Risk:
    """The worst of several; low for none."""
    return max(risks, key=RISK_ORDER.index, default=Risk.LOW)


def family(model: str) -> str | None:
    """The alias that a model id belongs to (`claude-opus-4-8` → `opus`), None if it is not known."""
    words = model.removesuffix("[1m]").split("-")
    return next((alias for alias in ALIASES if alias in words), None)


def is_allowed_model(model: str, allowed: Sequence[str]) -> bool:
    """Whether the host serves this model: named as it is, without its window, or by its family's alias."""
    plain = model.removesuffix("[1m]")
    return model in allowed or plain in allowed or family(plain) in allowed


def is_cheaper(before: str, after: str) -> bool:
    """Whether `after` surely costs less: a cheaper family, or the same model without its long window."""
    wider = after.endswith("[1m]") and not before.endswith("[1m]")
    if after == before.removesuffix("[1m]"):
        return after != before
    old, new = family(before), family(after)
    return old is not None and new is not None and not wider and ALIASES.index(new) < ALIASES.index(old)


def model_risk(before: str, after: str) -> tuple[Risk, str]:
    """Risk of another model."""
    if after == before or is_cheaper(before, after):
        return Risk.LOW, "not dearer"
    if family(after) is None:
        return Risk.ELEVATED, "the price of this model is not known here"
    return Risk.ELEVATED, "dearer, or not known to be cheaper"


def bash_risk(pattern: str) -> tuple[Risk, str]:
    """Risk of allowing the commands that a pattern of Claude Code's `Bash(...)` grammar matches."""
    text = pattern.removeprefix("Bash(").removesuffix(")") if pattern.startswith("Bash(") else pattern
    text = re.sub(r"(:\*|\s+\*)$", "", text.strip()).strip()
    words = text.split()
    program = words[0].rsplit("/", 1)[-1].lower() if words else "*"
    plain = _VERSION.sub("", program) or program
    if "*" in program or not words:
        return Risk.DANGEROUS, f"`{pattern}` is not bound to one program"
    if _ASSIGNMENT.match(words[0]):
        return Risk.DANGEROUS, f"`{pattern}` sets the environment of a command"
    if plain in INTERPRETERS or program in INTERPRETERS:
        return Risk.DANGEROUS, f"`{program}` is an interpreter: it runs any code"
    if plain in LAUNCHERS or program in LAUNCHERS:
        return Risk.DANGEROUS, f"`{program}` is a launcher: it runs other programs"
    launching = _LAUNCHING_ARGUMENTS.get(program)
    if launching is not None and launching.search(" ".join(words[1:])):
        return Risk.DANGEROUS, f"`{text}` is a launcher: it runs other programs or changes what is run"
    return Risk.ELEVATED, f"`{program}` may be run"
