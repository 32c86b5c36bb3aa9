"""The table of programs that write files named in their arguments: such a path is checked like a file tool's.

Every word that can be such a path is looked at; a bare word is a path in the present folder, so looking at
too many costs nothing. What can not be read as a path is refused. Pure.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from harness.policy.launchers import table_lines, takes_next
from harness.policy.words import Rest, Word


@dataclass(frozen=True, slots=True)
class Writer:
    """What of a program's arguments names a file or folder that it writes.

    `operands`: `all`, `last`, `but-first` (the first is a mode, an owner or a subcommand), `none`. `options`:
    those whose value does. `folders`: those whose value is the folder where it works.
    """

    operands: str
    options: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    why: str = ""


class Unclear(ValueError):  # noqa: N818 - it says what it is
    """A path that can not be known; the message says why."""


_TABLE = """
tee touch mkdir rmdir rm unlink shred truncate mkfifo mknod mktemp link fallocate mv ln install chattr
  setfacl | all | | | writes, moves or removes its operands
cp | last | -t --target-directory | | writes its last operand
chmod chown chgrp | but-first | | | changes its operands
split csplit | all | -f --prefix | | writes files named by a prefix
dd | dd | | | writes of=
sort shuf | none | -o --output | | writes its output file
uniq xxd | all | | | writes its second operand
tar bsdtar gtar | all | -f --file --listed-incremental -g --index-file | -C --directory | writes archives
  and what is in them
zip gzip gunzip bzip2 bunzip2 xz unxz lzma zstd unzstd lz4 brotli compress uncompress 7z 7za 7zr ar ranlib |
  all | -o --output --output-filename | | writes archives and what is in them
unzip | all | | -d | writes what is in the archive
patch | all | -o --output -r --reject-file | -d --directory | writes the files that it patches
rsync rclone | last | --log-file --backup-dir --partial-dir --temp-dir -T | | writes its last operand
sed gsed | sed | | | edits files in place with -i
yq | all | | | edits files in place with -i
curl | none | -o --output --output-dir -D --dump-header -c --cookie-jar --trace --trace-ascii --stderr
  --etag-save --hsts --alt-svc --libcurl --ssl-sessions | | writes what it fetched
wget | none | -O --output-document -o --output-file -a --append-output -P --directory-prefix --save-cookies
  --hsts-file --warc-file --rejected-log | | writes what it fetched
gcc g++ cc c++ clang clang++ tcc | none | -o -MF -MJ -dumpdir -dumpbase -aux-info --output | | writes its
  output file, dependencies and dumps
ld gold as strip objcopy | none | -o | | writes its output file
cpio | all | -O -F --file -E | -D --directory | writes archives and what is in them
pip pip3 | none | --log | | writes a log
xmllint xsltproc pandoc iconv tree protoc msgfmt msgmerge xgettext bison flex indent | none |
  -o --output | | writes its output file
ctags | none | -o -f | | writes its output file
tcpdump | none | -w | | writes its output file
gpg gpg2 | none | -o --output | | writes its output file
openssl | none | -out -keyout -CAserial -writerand | | writes its output file
ssh-keygen | none | -f | | writes keys
nix | none | --out-link -o | | links what was built
cargo | none | --out-dir | | writes what was built
""".strip()
_COMPILERS = frozenset({"gcc", "g++", "cc", "c++", "clang", "clang++", "tcc"})
_UNCLUSTERED = _COMPILERS | {"ld", "gold", "as", "strip", "objcopy", "openssl", "nix"}
_GIT_OPTIONS = ("--output", "--output-directory", "--output-indicator")
_GIT = {
    "archive": Writer("none", ("-o", "--output", "--prefix"), why="writes its output file"),
    "format-patch": Writer("none", ("-o", "--output-directory"), why="writes patches"),
    "bundle": Writer("but-first", why="writes the bundle"),
    "clone": Writer("last", why="writes the new repository"),
    "apply": Writer("none", ("--build-fake-ancestor",), why="writes an index of its own"),
    "read-tree": Writer("none", ("--index-output",), why="writes an index of its own"),
    "init": Writer("all", why="writes the new repository"),
    "worktree": Writer("but-first", why="writes the new work tree"),
}


def _read_table() -> dict[str, Writer]:
    found = {}
    for line in table_lines(_TABLE):
        programs, operands, options, folders, why = (part.strip() for part in line.split("|"))
        for program in programs.split():
            found[program] = Writer(operands, tuple(options.split()), tuple(folders.split()), why)
    return found


WRITERS = _read_table()


@dataclass(frozen=True, slots=True)
class Written:
    """A path as the program gets it, and the folders (relative ones, one after another) that come before
    it."""

    path: str
    behind: tuple[str, ...] = ()


def written(words: Sequence[Word]) -> tuple[Written, ...]:
    """All paths that the command may write, and all folders where it works. Raises `Unclear`."""
    name = words[0].text.rsplit("/", 1)[-1]
    if name == "git":
        return tuple(_git(words))
    writer = WRITERS.get(name)
    if writer is None:
        return ()
    found = tuple(_by(writer, name, words[1:], ()))
    # an archive's own path is not seen from the folder that -C names, so it is looked at both ways
    return (*found, *(Written(one.path) for one in found if one.behind))


def _git(words: Sequence[Word]) -> Iterator[Written]:
    """Folders of -C in front of the subcommand, each seen from the one before; then what the subcommand
    writes."""
    behind: tuple[str, ...] = ()
    at = 1
    while at < len(words) and words[at].text.startswith("-"):
        if words[at].text == "-C":
            at += 1
            if at < len(words):
                behind = (*behind, _known(words[at], "git -C"))
                yield Written(behind[-1], behind[:-1])
        elif takes_next("git", words[at].text):
            at += 1
        at += 1
    if at >= len(words):
        return
    writer = _GIT.get(words[at].text, Writer("none"))
    rest = words[at + 1 :]
    if words[at].text == "clone" and sum(not word.text.startswith("-") for word in rest) < 2:
        writer = Writer("none")  # into a folder here, named after the source
    if words[at].text in {"bundle", "worktree"} and not (rest and rest[0].text in {"add", "create", "move"}):
        writer = Writer("none")  # looks only
    options = Writer(writer.operands, (*writer.options, *_GIT_OPTIONS), (), writer.why)
    yield from _by(options, "git", rest, behind)


def _by(writer: Writer, name: str, words: Sequence[Word], behind: tuple[str, ...]) -> Iterator[Written]:
    options = (*writer.options, *writer.folders)
    operands: list[Word] = []
    behind_option: list[bool] = []
    after_option = False
    awaited = ""
    closed = False
    for word in words:
        if awaited:
            path = _known(word, f"{name} {awaited}")
            yield Written(path, behind)
            if awaited in writer.folders:
                behind = (*behind, path)
            awaited, after_option = "", False
            continue
        if not closed and word == Word("--"):
            closed = True
        elif not closed and word.text.startswith("-") and word.text != "-":
            value, awaited = _option(word, options, name)
            if not value and name in _COMPILERS and re.match(r"--?[fd].*=.*[/.]", word.text):
                value = _known(Word(word.text.split("=", 1)[1], word.rest), f"{name} {word.text[:20]}")
            if value:
                yield Written(value, behind)
            if writer.operands == "all" and not value and (more := _attached(word)):
                yield Written(more, behind)
        else:
            operands.append(word)
            behind_option.append(after_option)
        after_option = not closed and word.text.startswith("-") and "=" not in word.text
    if name in {"sed", "gsed"}:
        in_place = any(re.match(r"-[a-zA-Z]*i|--in", word.text) for word in words)
        operands = operands if in_place else []
    chosen = _chosen(writer, name, words, operands)
    while writer.operands == "last" and len(chosen) < len(operands) and behind_option[-len(chosen)]:
        chosen = operands[-len(chosen) - 1 :]  # the one after the option may be its value
    yield from (Written(_operand(word, name), behind) for word in chosen)


def _chosen(writer: Writer, name: str, words: Sequence[Word], operands: list[Word]) -> list[Word]:
    match writer.operands:
        case "all" | "sed":
            chosen = operands
        case "but-first":
            chosen = operands[1:]
        case "last":
            # a link that is made may lead outside, too
            links = name == "cp" and any(re.match(r"-[a-zA-Z]*[sl]|--(sy|li)", word.text) for word in words)
            chosen = operands if links else operands[-1:]
            if chosen and chosen[-1].rest is Rest.WORDS:
                raise Unclear(f"{name} needs a last operand without a file-name pattern")
        case "dd":
            chosen = [Word(word.text[3:], word.rest) for word in operands if word.may_begin("of=")]
        case _:
            chosen = []
    if name == "ln" and any(re.match(r"-[a-zA-Z]*s|--sy", word.text) for word in words):
        for word in operands:
            if not word.text.startswith("/") and ".." in word.text.split("/"):
                raise Unclear("a symbolic link to a relative path with ..: give the whole path")
    return [word for word in chosen if word.text != "-" or not word.is_known]


def _option(word: Word, options: Sequence[str], name: str) -> tuple[str, str]:
    """The path that an option holds in itself, or the option if the path is the next word."""
    for option in options:
        value = _value(word.text, option, name)
        if value is None:
            continue
        if not value and word.is_known and "=" not in word.text:
            return "", option
        return _known(Word(value, word.rest), f"{name} {option}"), ""
    return "", ""


def _value(text: str, option: str, name: str) -> str | None:
    """What a word that is the option holds of its value; None if it is another one."""
    stem, equals, value = text.partition("=")
    if option.startswith("--"):
        return value if len(stem) > 2 and option.startswith(stem) else None
    if text.startswith("--"):
        # programs of long options with one dash take two as well
        return value if len(option) > 2 and stem == "-" + option else None
    if text == option:
        return ""
    if len(option) > 2 and equals and stem == option:
        return value
    if name in _UNCLUSTERED:
        return text[len(option) :] if text.startswith(option) else None
    if len(option) == 2 and option[1] in stem:
        # in a cluster: its value is the rest of the word, or the next one
        return text[text.index(option[1], 1) + 1 :]
    return None


def _attached(word: Word) -> str:
    """What an option of a program that writes all its operands may hold as a path."""
    text = word.text.partition("=")[2] if word.text.startswith("--") else word.text[2:]
    return text if "/" in text or text == ".." else ""


def _known(word: Word, what: str) -> str:
    if not word.is_known or not word.text:
        raise Unclear(f"the path behind {what} is not known here: write it out")
    return word.text


_REMOVING = frozenset({"rm", "rmdir", "mv", "zip", "tar", "gzip", "xz", "bzip2", "zstd"})


def _operand(word: Word, name: str) -> str:
    """A path; of a file-name pattern in its last part, the folder of what it may match."""
    if word.is_known:
        return word.text or "."
    folder, _, last = word.shape.rpartition("/")
    plain = not re.search(r"[*?\[\0]", folder) and not last.startswith(".") and "\0" not in last
    if word.rest is Rest.WORDS and name in _REMOVING and plain and word.shape:
        return posixpath.join(folder or ("/" if word.shape.startswith("/") else "."), "x")
    raise Unclear(
        f"what {word.shown!r} stands for is not known here, and {name} writes there: name the files"
    )
