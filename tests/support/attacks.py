"""Shell texts that try to run something that is not allowed, or to write where nothing may be written.

Each is random structure around commands, some of them forbidden; then some of its characters are changed.
"""

from __future__ import annotations

import random

ALLOW = ("git *", "echo *", "ls", "cat *", "tee *", "rm *", "sed *")
DENY = ("git push *", "cat *deep*")

_GOOD = [
    "git log",
    "git status",
    "git add a.txt",
    "git log --oneline -n 2",
    "git -C sub log",
    "echo hi",
    "echo $?",
    "ls",
    "cat a.txt",
    "tee out/t",
    "cd sub",
    "cd /config",
    "true",
    "false",
    ":",
    'echo "$x" "${y}z"',
    "git add ./*.txt",
    "git add src/*",
    "echo $HOME",
    'echo "a  b"',
    "git commit -m 'a; b'",
    "cat < a.txt",
    "echo x > out/f",
    "ls 2>&1",
    "echo y >> /config/out",
    "cat <<'EOF'\n$(id) `id`\nEOF\n",
    "cat <<EOF\nplain\nEOF\n",
    "cat <<< 'a b'",
    "rm out/f",
    'git log -- "$x"',
    "sed -n 's/a/b/p' a.txt",
    "sed -i s/a/b/ out/t",
    "tee inner/t",
    "echo \\; id",
    "echo '`id`'",
    'echo "\\$(id)"',
    "ls # ; id",
    "! ls",
    "cd .",
    "cd sub/..",
    "git stash@{0}",
    "echo {} a{b}c",
    "exit 3",
]
_BAD = [
    "id",
    "sh -c id",
    "evil",
    "/evil",
    "./evil",
    "git push",
    "git -c a=b log",
    "git config x y",
    "git $x",
    'git "$x" log',
    "git log $y",
    "git add *",
    "git add -*",
    "tee /etc/x",
    "tee .git/config",
    "echo x > /etc/x",
    "> .git/config",
    "cd /etc",
    "cd ..",
    "cd ../etc",
    "$u",
    '"$u"',
    "`id`",
    "$(id)",
    "echo $(id)",
    'echo "$(id)"',
    "echo `id`",
    "git add {-c,x}",
    "FOO=1 git log",
    "git log &",
    "i\\d",
    "i''d",
    '"id"',
    "eval id",
    "cat <(id)",
    "git add ~/x",
    'tee "$d"/x',
    "tee $HOME/x",
    "git log --output=/etc/x",
    "cat <<EOF\n$(id)\nEOF\n",
    "git\tpush",
    "cd .git",
    "echo x > link/x",
    "tee gitlink/config",
    "cd link; echo x > y",
    "cd sub && echo x > ../../etc/y",
    "exec id",
    "command id",
    "builtin eval id",
    "x=id",
    "x=id; $x",
    "unset x",
    "alias ls=id",
    "function ls { id; }",
    "ls() { id; }",
    "coproc id",
    "time id",
    "[[ -v a[$(id)] ]]",
    "(( a[$(id)] ))",
    "echo $(( a[$(id)] ))",
    "echo ${v:-$(id)}",
    "echo ${e@P}",
    "test -v 'a[$(id)]'",
    "printf -v 'a[$(id)]' x",
    "echo $'\\x69'",
    "rm -r .git",
    "rm .g*",
    "rm /etc/passwd",
    "cat *",
    "cat sub/*/f",
    "cat src/*",
    'cat "$z"',
    "sed e a.txt",
    "sed -i s/a/b/ .git/config",
    "echo x > {a,/etc/b}",
    "echo x >| /tmp/y",
    "echo x &> /tmp/y",
    "echo x >& /tmp/y",
    "echo x 2> /tmp/y",
    "ls <> /tmp/y",
    "ls {fd}> /tmp/y",
    "while cd ..; do echo x > y; break; done",
    "for f in id; do $f; done",
    "for f in src/*; do git $f; done",
    'for f in -c; do git "$f" x; done',
    "for f in push; do git $f; done",
    "for f in src/*; do rm $f; done",
    "for PATH in /state; do evil; done",
    "case $(id) in *) ls;; esac",
    "echo x > src/../../etc/x",
    "\nid\n",
    "ls;id",
    "ls|id",
    "ls||id",
    "ls\n\\\nid",
    "git log --exec=id",
    "git fetch ext::id",
    "rm -rf ..",
    "cd -",
    "cd",
    "pushd /etc",
    "> /tmp/z",
    "< /etc/passwd id",
    "cat << E\nE\nid\n",
    "cat <<'E' ; id\nE\n",
    "cat <<-E\n\tE\nid\n",
    "echo a #b\nid",
]
_MARKS = "\\'\"`$(){}[]<>|&;#!~*?=\n\t -"


def text(seed: int) -> str:
    """One text; the same for the same seed."""
    chance = random.Random(seed)
    made = _structure(chance, chance.randrange(4))
    if chance.random() < 0.4:
        made = _changed(chance, made)
    return made


def _command(chance: random.Random) -> str:
    return chance.choice(_GOOD) if chance.random() < 0.8 else chance.choice(_BAD)


def _structure(chance: random.Random, depth: int) -> str:
    if depth == 0:
        return _command(chance)

    def inner() -> str:
        return _structure(chance, chance.randrange(depth))

    shape = chance.choice(
        [
            "{a}; {b}",
            "{a} && {b}",
            "{a} || {b}",
            "{a} | {b}",
            "{a} |& {b}",
            "{a}\n{b}",
            "({a})",
            "{{ {a}; }}",
            "! {a}",
            "if {a}; then {b}; fi",
            "if {a}; then {b}; else {c}; fi",
            "if {a}\nthen {b}\nelif {c}; then :; fi",
            "for f in a b; do {a}; done",
            'for f in src/*.py; do {a}; echo "$f"; done',
            'for d in sub /config; do (cd "$d" && {a}); done',
            "for f in a.txt x; do cat $f; {a}; done",
            "while false; do {a}; done",
            "until true; do {a}; done",
            "while true; do {a}; break; done",
            "case x in x) {a};; y|z) {b};; esac",
            'case "$x" in -*) {a} ;; *) {b};; esac',
            "({a}; {b}) > out/s 2>&1",
            "{{ {a}; }} >> out/g",
            "{a} &",
            "{a}; {b} # {c}",
            "{a} \\\n && {b}",
            "{a} 2>/dev/null | {b}",
            "cat <<'E' | {a}\n{b}\nE\n{c}",
            "( {a} ) | ( {b} )",
            "for f in a; do for g in b; do {a}; done; {b}; done",
            "cd sub && {a}",
            "(cd sub; {a}); {b}",
            'echo "{a}"',
            "echo '{a}'",
            "echo $({a})",
            "{a};{b};{c}",
            "if ! {a}; then {b}; fi",
        ]
    )
    return shape.format(a=inner(), b=inner(), c=inner())


def _changed(chance: random.Random, made: str) -> str:
    """Some characters inserted, removed, doubled or swapped."""
    characters = list(made)
    for _ in range(chance.randrange(1, 4)):
        at = chance.randrange(len(characters) + 1)
        match chance.randrange(4):
            case 0:
                characters.insert(at, chance.choice(_MARKS))
            case 1 if characters:
                characters.pop(at - 1)
            case 2 if at < len(characters):
                characters[at] = chance.choice(_MARKS)
            case _ if characters:
                piece = characters[at - 3 : at] if at >= 3 else characters[:1]
                characters[at:at] = piece
    return "".join(characters)
