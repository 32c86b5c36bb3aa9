"""The table of launchers: what runs other programs, or changes what is run, so that a pattern for it would
allow anything. Data, and how it is looked up. Pure; the host's judgement of risk reads the same table.

A launcher is refused unless a pattern spells it out: `git *` does not allow `git -c core.pager=id log`; `git
-c *` does. The table cannot be complete, for any program may start others.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

_TABLE = """
# Programs that run what they are given. `>`: their arguments are a command line, which is looked at as well.
ash bash busybox csh dash fish ksh mksh nu pwsh rbash sh tcsh toybox zsh | | a shell: runs any command line
bun deno erl expect ghci gjs groovy guile irb ipython java jshell julia lua luajit node nodejs ocaml octave
  perl php psysh pypy pypy3 python python3 r rscript ruby scala swipl tclsh wish | | an interpreter: runs
  any code
awk gawk mawk nawk original-awk | | system(), pipes and print > "file" run programs and write anywhere
rename prename file-rename | | the one of Perl runs any code
dc m4 | | has a command that runs shell text
eval source . | | runs text as shell commands
alias bind complete compgen enable hash set shopt trap fc history jobs | | changes what the shell runs, or
  runs it later
declare export local readonly typeset unset let read mapfile readarray getopts ulimit umask | | changes
  variables or limits of the shell; a subscript in a name is run as code
pushd popd dirs | | changes the folder in ways that the policy does not follow
>builtin >command >exec | | runs the command that follows
>caffeinate >chpst >chronic >dumb-init >envdir >fzf >hyperfine >ifne >nodemon >sem >tini >tsp >watchexec >xe
  | | runs
  the command in its arguments
>chroot >chrt >cpulimit >dbus-run-session >doas >env >eatmydata >fakeroot >faketime >firejail >flock >gosu
  >ionice >linux32 >linux64 >ltrace >nice >nohup >nsenter >numactl >parallel >pkexec >prlimit >proot
  >proxychains >runcon >run-parts >runuser >schroot >setarch >setpriv >setsid >setuidgid >stdbuf >strace >su
  >sudo >sudoedit >systemd-inhibit >systemd-run >taskset >time >timeout >torsocks >trickle >unbuffer
  >unshare >valgrind >watch >xargs >xvfb-run >bwrap >capsh >catchsegv >choom >entr >lockfile-run >logsave
  >perf >rlwrap >softlimit >start-stop-daemon >tsocks >viddy >with-contenv >i386 >x86_64 >ld.so
  >ld-linux.so.2 >ld-linux-x86-64.so.2 | | runs the command in its arguments
at batch crontab | | runs commands later
script scriptreplay screen tmux dtach abduco zellij | | runs a shell or a command
ssh scp sftp sshfs mosh autossh rsh rlogin telnet ftp lftp socat | | runs programs (ProxyCommand, -S, EXEC:,
  !command), here or elsewhere
emacs emacsclient ed ex hx joe kak mcedit micro nano nvim pico red rvim vi view vim vimdiff vimtutor rview |
  | an editor: has commands that run programs and write anywhere
info less lesspipe lv man more most pg pinfo w3m lynx links elinks zless zmore xzless bzless | | a pager or
  browser: has commands that run programs, and obeys LESSOPEN, PAGER and the like
gdb lldb rr pdb radare2 r2 | | a debugger: runs any program and any code
sqlite3 psql mysql mariadb duckdb clickhouse-client mongosh redis-cli | | a database shell: runs programs
  (.shell, \\!) and writes files
docker podman nerdctl buildah lxc lxc-attach machinectl nspawn systemd-nspawn kubectl helm ctr crictl | |
  runs programs in places of its own
systemctl service initctl init telinit shutdown reboot halt poweroff | | starts and stops services
apt apt-get aptitude dpkg dpkg-deb rpm yum dnf zypper pacman apk snap flatpak brew | | installs packages and
  runs their scripts
make gmake bmake ninja samu cmake ctest meson bazel bazelisk buck gradle gradlew mvn ant sbt scons waf just
  task rake invoke nox tox pytest py.test pre-commit lein mage earthly eslint prettier stylelint jest vitest
  mocha webpack vite rollup babel mypy pylint sphinx-build | | runs what a file of the work tree
  says
cabal stack mix rebar3 dune opam dotnet swift zig composer bundle gem bundler uv uvx poetry pdm pipx pipenv
  hatch conda mamba yarn pnpm npx pnpx bunx corepack nvm asdf mise direnv | | installs or runs packages and
  what they name
nix-shell nix-build nix-env nix-instantiate nix-channel nix-collect-garbage nix-copy-closure nix-daemon
  nix-store nixos-rebuild home-manager cachix | | the older commands of Nix: run shells, hooks and
  expressions with --arg, --expr, --run
vagrant ansible ansible-playbook terraform tofu packer puppet chef-client salt-call pulumi | | runs what a
  file of the work tree says
chsh passwd sg useradd usermod visudo newgrp login | | changes who runs what
insmod modprobe mount umount losetup swapon kexec sysctl | | changes the system itself
git-shell git-daemon git-receive-pack git-upload-pack gitk tig lazygit gh hub | | runs git with hooks,
  pagers, aliases or extensions of its own
# git: `^` before the subcommand
git ^ | -c --config-env | sets configuration, in which aliases, pagers, editors, hooks and filters are
  programs
git ^ | --exec-path | changes where git finds its own programs
git ^ | --git-dir --work-tree --namespace --super-prefix --bare | takes configuration and hooks from
  elsewhere, or works elsewhere
git ^ | -p --paginate | starts the pager
# git: of any subcommand
git | --upload-pack --receive-pack --exec | names a program for the other side, or a command to run
git | --ext-diff --textconv --gpg-sign | runs a program that the configuration names
git | --strategy | runs git-merge-NAME
git clone,fetch,pull,push,ls-remote,remote,archive | *::* | a remote helper: `ext::` runs a command line,
  NAME:: runs git-remote-NAME
git archive | --add-virtual-file | packs a file under any name, in .git as well
git archive | --remote | runs a program on the other side
git apply | --unsafe-paths --directory | writes outside of the work tree
git cherry-pick,commit,merge,pull,rebase,revert | -S | signs with a program of the configuration
git clone | -c --config | sets configuration of the new repository
git clone | -u | names a program for the other side
git clone,init | --template --separate-git-dir --bare | puts hooks or settings where the file tools may
  write
git clone | --mirror | puts settings where the file tools may write
git clone,fetch,pull | --recurse-submodules | fetches from addresses that the repository names
git grep | -O --open-files-in-pager | starts a pager of the caller's choice
git merge,pull | -s | runs git-merge-NAME
git push | --signed | signs with a program of the configuration
git rebase | -x -s | runs a command for each commit, or git-merge-NAME
git repack | --filter-to --expire-to | writes packs elsewhere
git tag | -s -u --sign --local-user | signs with a program of the configuration
# find and its like
>find | -exec -execdir -ok -okdir | runs a command for each file
find | -delete | removes whatever it finds
find | -fprint -fprint0 -fprintf -fls | writes files anywhere
find | -files0-from | reads its starting points from a file
>fd >fdfind | -x -X --exec --exec-batch | runs a command for each file
rg | --pre --hostname-bin | runs a program on each file
ag ack bat batcat delta | --pager --ackrc | starts a program
# archives and copies
tar bsdtar gtar | -I --use-compress-program --use-compress-prog | runs a program as the compressor
tar bsdtar gtar | --to-command | runs a program for each member
tar bsdtar gtar | --checkpoint-action | runs a command every so often
tar bsdtar gtar | -F --info-script --new-volume-script | runs a script at the end of each volume
tar bsdtar gtar | --rsh-command --rmt-command | runs a program for a remote archive
tar bsdtar gtar | --transform --xform --one-top-level | unpacks to other names than those of the archive,
  into .git as well
bsdtar | -s | unpacks to other names than those of the archive
cpio | -i --extract | unpacks to wherever the archive says
tar bsdtar gtar | -P --absolute-names --absolute-paths -T --files-from | writes or reads outside of the
  folder
cpio | --rsh-command --absolute-filenames | runs a program, or writes outside of the folder
rsync | -e --rsh --rsync-path --daemon --config | runs a program as the transport
zip | -T -TT --unzip-command --test | runs a program to test the archive
zip | -l --logfile-path | -lf writes a log anywhere
install | --strip-program | runs a program
unzip | -: -^ | lets members leave the folder
# text tools
sort | --compress-program | runs a program for temporary files
sort | --files0-from | reads the names of its files from a file
split | --filter | runs a command for each piece
sed gsed | -f --file | a script from a file may run commands and write files
test [ | -v -R | a subscript in a name is run as code
printf | -v | a subscript in a name is run as code
wait | -p | a subscript in a name is run as code
diff | --paginate -l | runs pr
diff3 sdiff | --diff-program | runs a program as diff
patch | --get -g | runs a version control program
patch | -e --ed | runs ed, whose scripts run programs
jq | -L --library-path | loads code from a folder
pandoc | -F --filter -L --lua-filter --pdf-engine --data-dir -d --defaults --extract-media | runs a program
  or code
ctags | --options | takes options from a file
gpg gpg2 | --exec-path --photo-viewer --agent-program --dirmngr-program --pinentry-program
  --keyserver-options --homedir --options | runs a program, or takes settings from elsewhere
openssl | -engine -provider-path --provider-path -config | loads code
ssh-agent | | runs a command
ssh-add ssh-keygen | -D -s -P | loads code
tcpdump | -z | runs a program for each file
nc ncat netcat | -e -c --exec --sh-exec --lua-exec | runs a program for a connection
gcc g++ cc c++ clang clang++ tcc | -B -specs --specs -wrapper -fplugin -Xclang -load --sysroot @* | runs a
  program as a part of the compiler, or loads code
gcc g++ cc c++ clang clang++ tcc | -Wl, -Wa, -Wp, -Xlinker -Xassembler -Xpreprocessor | passes options to a
  part of the compiler, which load code or write files
ld gold lld as | -plugin --plugin -T @* | loads code
# network
curl | -K --config | options from a file: writes anywhere
curl | %output{* | --write-out writes files
curl | --engine | loads code
curl | -w --write-out | %output{FILE} writes anywhere
wget | --use-askpass --config -e --execute | runs a program, or takes options from elsewhere
aria2c | --on-download-start --on-download-complete --on-download-error --conf-path -i | runs a program
# builds
make gmake | -f --file --makefile -C --directory -I --include-dir -E --eval *=* | another makefile, folder
  or variable (SHELL=, CC=) changes what is run
npm | --script-shell --node-options --userconfig --globalconfig --viewer --browser --editor --git --shell |
  changes what is run
npm audit | fix | installs packages and runs their scripts
pip pip3 | --python | runs another interpreter
cargo | --config -Z --manifest-path -C --target-dir | takes settings, and so programs, from elsewhere
go list | -export -compiled -mod | builds, or fetches modules
go | -exec -toolexec -vettool -C -modfile -overlay -w -u -export -compiled | runs a program as a part of the
  build, or changes
  settings
nix | --impure --expr --file -f --arg --argstr | evaluates anything, with the environment
nix | --option --builders --store --eval-store --accept-flake-config --override-input --inputs-from
  --include -I --command -c | changes what Nix runs, trusts or reads
nix | -! | any other option: each setting of Nix is one
nix | --profile | links what was built into a profile, where programs are found
nix flake | init new clone archive | writes files from elsewhere, or copies to elsewhere
nix store | add add-file add-path copy-sigs delete gc repair sign make-content-addressed | changes the store
"""

# Programs with subcommands: those that run nothing of the caller's choice. Any other must be named.
_SUBCOMMANDS = """
git | add am annotate apply archive blame branch bundle cat-file check-attr check-ignore checkout cherry
  cherry-pick clean clone commit commit-tree count-objects describe diff diff-files diff-index diff-tree
  fetch for-each-ref format-patch fsck gc grep hash-object init log ls-files ls-remote ls-tree merge
  merge-base merge-tree mktree mv name-rev notes patch-id prune pull push range-diff read-tree rebase reflog
  remote repack reset restore rev-list rev-parse revert rm shortlog show show-branch show-ref
  sparse-checkout stash status stripspace switch symbolic-ref tag update-index update-ref var verify-commit
  verify-pack verify-tag version whatchanged worktree write-tree | aliases and git-NAME programs, config,
  bisect run, submodule foreach, filter-branch, difftool, mergetool, send-email, hook run, maintenance,
  credential helpers
npm | audit fund help ls list ll outdated ping prefix root search version view whoami why | run, exec,
  install, ci, test, publish and their like run scripts of packages
pip pip3 | check freeze hash help inspect list show index | install, wheel and download run the builds of
  packages
cargo | help locate-project pkgid read-manifest search verify-project version | build, run, test, check and
  bench run build scripts; install and NAME run programs; metadata and tree run the rustc that
  .cargo/config.toml names
go | doc env fmt help list version | run, generate, test, build with cgo, get, install, tool and vet run
  programs
nix | build derivation eval flake hash help log path-info print-dev-env search show-config store why-depends
  | run, shell, develop, repl, edit, fmt, profile, registry, upgrade-nix, daemon, copy, bundle run programs
  or change what is run
"""

# Options that may stand in front of a subcommand without being named, and take no value.
_HARMLESS = frozenset({
    "--version", "--help", "-h", "-v", "-V", "--no-pager", "-P", "--no-replace-objects",
    "--literal-pathspecs", "--no-optional-locks", "--offline", "--quiet", "-q", "--verbose",
})  # fmt: skip
_VALUED: dict[str, frozenset[str]] = {
    "git": frozenset({"-C"}),
    "nix": frozenset({"--extra-experimental-features"}),
}
# Those that must be named, and take one.
_NAMED_VALUED: dict[str, frozenset[str]] = {
    "git": frozenset({"-c", "--config-env", "--git-dir", "--work-tree", "--namespace", "--super-prefix"}),
}


# Options of Nix that show or bound something.
NIX_HARMLESS = frozenset({
    "--all-systems", "--apply", "--attr", "--build", "--cores", "--derivation", "--dry-run",
    "--extra-experimental-features", "--help", "--human-readable", "--json", "--keep-failed",
    "--keep-going", "--legacy", "--log-format", "--max-jobs", "--no-build", "--no-link",
    "--no-update-lock-file", "--no-write-lock-file", "--offline", "--out-link", "--print-build-logs",
    "--print-out-paths", "--quiet", "--raw", "--read-only", "--rebuild", "--recursive", "--refresh",
    "--show-trace", "--size", "--sri", "--type", "--verbose", "--version", "--closure-size",
    "--commit-lock-file", "--exclude", "-L", "-S", "-h", "-j", "-k", "-K", "-o", "-r", "-s", "-v",
    "-vv", "-e", "--precise", "--all",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """One form of a launcher.

    `subcommand`: only of that one; `^`: only in front of it. `form`: an option, a word, a shape with `*`;
    empty: the program itself; `!`: any subcommand and `-!`: any option that is not harmless. `wraps`: its
    arguments hold a command line, which is looked at as well.
    """

    program: str
    subcommand: str
    form: str
    why: str
    wraps: bool = False
    harmless: frozenset[str] = frozenset()

    @property
    def pattern(self) -> str:
        """A pattern that names the form."""
        form = {"*::*": "ext::*", "@*": "@file*", "*=*": "SHELL=*", "!": "NAME", "-!": "build --any"}.get(
            self.form, self.form
        )
        return " ".join(part for part in (self.program, self.subcommand.strip("^"), form, "*") if part)


def table_lines(text: str) -> list[str]:
    """The rows of a table: an indented line goes on with the one before, `#` begins a comment."""
    lines = [line for line in text.strip().splitlines() if line and not line.startswith("#")]
    return "\n".join(lines).replace("\n  ", " ").splitlines()


@cache
def rows() -> tuple[Row, ...]:
    """The whole table."""
    found = []
    for line in table_lines(_TABLE):
        programs, forms, why = (part.strip() for part in line.replace("\\\\", "\\").split("|", 2))
        names = programs.split()
        subcommands = names.pop().split(",") if names[0] in {"git", "nix"} and len(names) > 1 else [""]
        found += [
            Row(name.removeprefix(">"), subcommand, form, why, name.startswith(">"))
            for name in names
            for subcommand in subcommands
            for form in forms.split() or [""]
        ]
    for line in table_lines(_SUBCOMMANDS):
        programs, harmless, why = (part.strip() for part in line.split("|", 2))
        found += [
            Row(name, "", "!", f"any but the listed: {why}", harmless=frozenset(harmless.split()))
            for name in programs.split()
        ]
    return tuple(found)


@cache
def by_program() -> dict[str, tuple[Row, ...]]:
    """The rows of each program."""
    found: dict[str, tuple[Row, ...]] = {}
    for row in rows():
        found[row.program] = (*found.get(row.program, ()), row)
    return found


_VERSIONED = (
    "python",
    "pypy",
    "perl",
    "ruby",
    "lua",
    "php",
    "node",
    "tclsh",
    "guile",
    "java",
    "pip",
    "gcc",
    "clang",
    "g++",
    "clang++",
)


def rows_of(program: str) -> tuple[Row, ...]:
    """The rows of a program by its name or path; python3.11, perl5.36 and git-foo count as what they are."""
    name = program.rsplit("/", 1)[-1]
    table = by_program()
    if found := table.get(name) or table.get(name.lower()):
        return found
    plain = name.rstrip("0123456789.-").lower()
    if plain != name.lower() and plain in _VERSIONED and (found := table.get(plain)):
        return found
    if name.startswith(("git-", "ld-linux", "ld-musl")):
        return (Row(name, "", "", "a part of git or the loader: runs programs"),)
    return ()


def harmless_option(word: str) -> bool:
    """Whether an option may stand in front of a subcommand."""
    return word in _HARMLESS


def valued_option(program: str, word: str) -> bool:
    """Whether an option in front of a subcommand takes the next word and does no harm by itself."""
    return word in _VALUED.get(program, frozenset())


def takes_next(program: str, word: str) -> bool:
    """Whether an option in front of a subcommand takes the next word."""
    return valued_option(program, word) or word in _NAMED_VALUED.get(program, frozenset())
