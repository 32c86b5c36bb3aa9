"""What makes a command a launcher, by the table of `launchers`. Pure.

Looked at are all words, whatever their place: an option's value that looks like a launcher's option is
refused, too. A word that is not fully known counts as whatever it may be.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from harness.policy.launchers import NIX_HARMLESS, Row, harmless_option, rows_of, takes_next, valued_option
from harness.policy.words import Rest, Word, known

# Programs whose options are long words with one dash, or are not clustered
_ONE_DASH = frozenset({
    "find", "fd", "fdfind", "gcc", "g++", "cc", "c++", "clang", "clang++", "tcc", "ld", "gold", "lld",
    "as", "go", "openssl", "java", "nix", "test", "[",
})  # fmt: skip
_DELIMITER_BLIND = _ONE_DASH | {
    "tar",
    "bsdtar",
    "gtar",
    "sed",
    "gsed",
}  # `--` does not end their options, or is odd
_SED_SCRIPT = re.compile(
    r"""\s*(?:(?:\d+|\$|/(?:[^/\\\n]|\\.)*/)(?:,(?:\+?\d+|\$|/(?:[^/\\\n]|\\.)*/))?)?\s*!?\s*
    (?:[pdqQnNDPhHgGxlz=]|q\d+|s(?P<d>[/|,#:@%~!])(?:(?!(?P=d))[^\\\n]|\\.)*(?P=d)(?:(?!(?P=d))[^\\\n]|\\.)*(?P=d)[gpiI0-9]*
     |y(?P<e>[/|,#:@])(?:(?!(?P=e))[^\\\n]|\\.)*(?P=e)(?:(?!(?P=e))[^\\\n]|\\.)*(?P=e))\s*""",
    re.VERBOSE,
)
_SED_PLAIN = re.compile(
    r"-[nErsuz]*(?:i(?:\.[\w.]*)?)?|--(?:quiet|silent|regexp-extended|separate|null-data|posix|in-place(?:=\.[\w.]*)?)"
)


@dataclass(frozen=True, slots=True)
class Found:
    """A word that makes a command a launcher; a pattern must name it (`Pattern.names`)."""

    form: str
    word: str
    why: str


def launching(words: Sequence[Word]) -> tuple[Found, ...]:
    """All such words of one simple command, its own name and the commands inside of it included."""
    found = list(_own(words))
    if is_wrapper(words):
        for at in range(1, len(words)):
            if words[at].is_known and words[at].text != "." and rows_of(words[at].text):
                found += _own(words[at:])
    return tuple(dict.fromkeys(found))


def is_wrapper(words: Sequence[Word]) -> bool:
    """Whether the arguments hold another command line."""
    name = words[0].text.rsplit("/", 1)[-1]
    return any(
        row.wraps and (not row.form or any(_is_option(name, word.text, row.form) for word in words[1:]))
        for row in rows_of(words[0].text)
    )


def commands_in(words: Sequence[Word]) -> Iterator[tuple[Word, ...]]:
    """The command in all the ways in which a deny pattern may mean it: as it is, without the folder of its
    name, without git's options in front of the subcommand, and each command line that may be inside of it."""
    starts = range(len(words)) if is_wrapper(words) else [0]
    for at in starts:
        inner = tuple(words[at:])
        yield inner
        plain = (Word(inner[0].text.rsplit("/", 1)[-1]), *inner[1:]) if "/" in inner[0].text else inner
        if plain != inner:
            yield plain
        if plain[0] == Word("git"):
            subcommand = _subcommand("git", plain)
            yield (plain[0], *plain[subcommand:])


def _own(words: Sequence[Word]) -> Iterator[Found]:
    name = words[0].text
    rows = rows_of(name)
    plain = name.rsplit("/", 1)[-1]
    if plain in {"sed", "gsed"}:
        yield from _sed(words)
    if not rows:
        return
    whole = [row for row in rows if not row.form]
    yield from (Found(name, name, row.why) for row in whole)
    start = 1
    subcommand = ""
    for row in rows:
        if row.form == "!":
            start = _subcommand(plain, words)
            yield from _in_front(plain, words[1:start], rows)
            if start < len(words):
                subcommand = words[start].text if words[start].is_known else ""
                if subcommand not in row.harmless:
                    yield Found(words[start].shown, words[start].shown, row.why)
    for row in rows:
        if row.form in {"", "!"} or row.subcommand not in {"", subcommand}:
            continue
        scanned = words[start + 1 :] if subcommand and row.program == "git" else words[1:]
        yield from _by_row(plain, row, scanned, old_style=start == 1)
    if not whole:
        yield from _unknown(plain, words[1:])


def _subcommand(program: str, words: Sequence[Word]) -> int:
    """Where the subcommand stands; the number of words if there is none."""
    at = 1
    while at < len(words) and words[at].text.startswith("-"):
        at += 2 if takes_next(program, words[at].text) else 1
    return min(at, len(words))


def _in_front(program: str, words: Sequence[Word], rows: Sequence[Row]) -> Iterator[Found]:
    """Options in front of the subcommand: any that is not harmless must be named."""
    skip = False
    for word in words:
        if skip:
            skip = False
        elif valued_option(program, word.text):
            skip = True
        elif not harmless_option(word.text) or not word.is_known:
            known = [
                row for row in rows if row.form.startswith("-") and _is_option(program, word.text, row.form)
            ]
            why = (
                known[0].why
                if known
                else "an option in front of the subcommand, which may take the next word"
            )
            yield Found(known[0].form if known else word.text, word.text, why)
            skip = takes_next(program, word.text)


def _by_row(program: str, row: Row, words: Sequence[Word], *, old_style: bool) -> Iterator[Found]:
    for number, word in enumerate(words):
        text = word.text
        if program in {"tar", "bsdtar", "gtar"} and old_style and number == 0 and not text.startswith("-"):
            text = f"-{text}"
        if row.form == "-!":
            stem = text.split("=", 1)[0]
            hit = text.startswith("-") and stem not in NIX_HARMLESS and not re.fullmatch(r"-[jv]\d*", text)
        elif "*" in row.form:
            hit = _has_shape(row.form, word)
        elif row.form.startswith("-"):
            hit = _is_option(program, text, row.form)
        else:
            hit = word.may_be(row.form)
        if hit:
            yield Found(_named_by(row.form, word), word.shown, row.why)


def _named_by(form: str, word: Word) -> str:
    """The least that a pattern must spell out to name the word."""
    match form:
        case "*::*":
            return word.text.split("::", 1)[0] + "::"
        case "*=*" | "-!":
            return word.text.split("=", 1)[0]
        case "@*":
            return "@"
        case _:
            return form


def _has_shape(shape: str, word: Word) -> bool:
    match shape:
        case "*::*":
            hit = re.match(r"[A-Za-z0-9.+-]+::", word.text)
            return bool(hit) or (
                not word.is_known and re.fullmatch(r"[A-Za-z0-9.+-]*:?", word.text) is not None
            )
        case "@*":
            return word.may_begin("@")
        case "%output{*":
            return "%output{" in word.text
        case _:  # *=*
            return re.match(r"[A-Za-z_][\w.]*[:+?!]*=", word.text) is not None or (
                not word.is_known and re.fullmatch(r"\w*", word.text) is not None
            )


def _is_option(program: str, word: str, option: str) -> bool:
    """Whether a word is the option: itself, with a value, abbreviated, or in a cluster of short ones."""
    if word == option or word.startswith(option + "="):
        return True
    if program in _ONE_DASH and word.startswith("--") and len(option) > 2:
        word = word[1:]  # gcc, go and openssl take long options with either
        if word == option or word.startswith(option + "="):
            return True
    if option.endswith(",") and word.startswith(option):
        return True
    if option.startswith("--"):
        stem = word.split("=", 1)[0]
        return len(stem) > 2 and option.startswith(stem)
    if len(option) == 2 and len(word) > 2 and word[0] == "-" and word[1] != "-":
        if program in _ONE_DASH:
            return word[1] == option[1]
        return option[1] in word[1:] if not option[1].isalnum() else option[1] in re.split(r"\W", word[1:])[0]
    return False


def _unknown(program: str, words: Sequence[Word]) -> Iterator[Found]:
    """Words that may be any option."""
    if program in {"test", "["} and _is_plain_test(words):
        return
    for word in words:
        if word == Word("--") and program not in _DELIMITER_BLIND:
            return
        if word.is_known or word.rest is Rest.DIGITS or word.form:
            continue
        if not word.text or (word.text.startswith("-") and "=" not in word.text):
            yield Found(
                word.shown, word.shown, "a word that is not known here may be any option; put it behind --"
            )


_UNARY = frozenset(["-n", "-z", "-f", "-d", "-e", "-r", "-w", "-x", "-s", "-L", "-h"])
_BINARY = frozenset(
    ["=", "==", "!=", "<", ">", "-eq", "-ne", "-lt", "-le", "-gt", "-ge", "-nt", "-ot", "-ef"]
)


def _is_plain_test(words: Sequence[Word]) -> bool:
    """Whether a test has its operator where the number of words makes it one, whatever the rest is."""
    rest = list(words[:-1] if words[-1:] == known("]") else words)
    if rest[:1] == [Word("!")]:
        del rest[0]
    at = {2: 0, 3: 1}.get(len(rest), -1)
    return at >= 0 and rest[at].is_known and rest[at].text in (_UNARY if at == 0 else _BINARY)


def _sed(words: Sequence[Word]) -> Iterator[Found]:
    """Scripts with more than printing, deleting and replacing: `e`, `w`, `r`, `s///e` and what can not be
    read."""
    why = "only plain sed scripts are read here (s, p, d, q …); e, w and s///e run programs and write files"
    scripts: list[Word] = []
    operands: list[Word] = []
    at = 1
    while at < len(words):
        word = words[at]
        at += 1
        stem = word.text.split("=", 1)[0]
        if (word.is_known and word.text in {"-e", "--expression"}) or re.fullmatch(r"-[nErsuz]+e", word.text):
            scripts += words[at : at + 1]
            at += 1
        elif word.is_known and stem == "--expression":
            scripts.append(Word(word.text.split("=", 1)[1]))
        elif word.text.startswith("-") and word.text != "-":
            if not word.is_known or not _SED_PLAIN.fullmatch(word.text):
                yield Found(word.text[:2], word.shown, why)
        else:
            operands.append(word)
    for script in scripts or operands[:1]:
        if not script.is_known or not _is_plain_script(script.text):
            yield Found(script.shown, script.shown, why)


def _is_plain_script(text: str) -> bool:
    at = 0
    while at < len(text):
        found = _SED_SCRIPT.match(text, at)
        if found is None or found.end() == at:
            return not text[at:].strip()
        at = found.end()
        if at < len(text):
            if text[at] not in ";\n":
                return False
            at += 1
    return True
