"""The verbs of `hive` that concern people and the host: rows of the table in `reconciler.cli.verbs`."""

from __future__ import annotations

from reconciler.cli.grammar import DRY_RUN, YES, Verb, option, positional, switch

_ROOT = option(
    "--root", about="write below this directory and tell nobody (an image)", default="/", metavar="DIR"
)
_DRY_RUN_FILES = switch("--dry-run", about="print what would change, and change nothing")

HOST = (
    Verb(
        "login",
        "People and host",
        "Print a one-time link that logs a browser in.",
        "history:login",
        (
            option("--user", about="who logs in (default operator); made if new", default="operator"),
            option(
                "--role",
                about="what a new user may do (default operator)",
                choices=("viewer", "operator"),
                default="operator",
            ),
            DRY_RUN,
        ),
    ),
    Verb("users", "People and host", "List people who may log in.", "history:users"),
    Verb("sessions", "People and host", "List live browser sessions.", "history:sessions"),
    Verb(
        "doctor",
        "People and host",
        "Check everything that must be true of the hive and its host.",
        "care:doctor",
        (
            switch("--repair", about="first make anew what is only a picture of the rows"),
            switch("--dry-run", about="with --repair: only check"),
            switch("--all", about="show also what is well"),
        ),
        (("hive doctor --json | jq '.items[] | select(.status == \"fail\")'", "for a monitor"),),
        "Exits by 1 if anything failed; warnings are allowed. While hived is away, it checks what the disk "
        "tells.",
    ),
    Verb(
        "backup",
        "People and host",
        "Write the whole hive into one file, while it lives.",
        "care:backup",
        (
            positional("file", "the file, which must not exist; '-' is standard output"),
            switch("--without-state", about="leave the agents' own trees out"),
            switch("--dry-run", about="say what would be in it, and how large"),
        ),
        (("hive backup /srv/hive-$(date +%F).tar", "every hash is compared before the file gets its name"),),
        "Rows, repositories and staged states are of one instant; the agents' trees are read after it, while "
        "they work. Sockets, pipes, devices and extended attributes are left out. No credential is in it, "
        "but all that agents know: its mode is 0600, keep it like that.",
    ),
    Verb(
        "restore",
        "People and host",
        "Make an empty host hold the hive of a backup; hived must not run.",
        "care:restore",
        (
            positional("file", "what `hive backup` wrote"),
            switch("--dry-run", about="check all of it, and whether it fits here, and do nothing"),
            YES,
        ),
        (("hive restore /srv/hive-2026-01-31.tar", "as root, then start hived"),),
        "Refuses a file that is damaged or newer, a state directory that is not empty, and uids that are "
        "taken here. Needs root.",
    ),
    Verb(
        "schema",
        "People and host",
        "Print the JSON Schema of an agent's settings.",
        "local:schema",
        (),
        (("hive schema > spec.schema.json", "for an editor or another program"),),
        json=False,
    ),
    Verb(
        "check-config",
        "People and host",
        "Validate the host's configuration without a hive.",
        "local:check_config",
        (positional("file", "the file (default $HIVE_CONFIG, else /etc/hyperhive/config.json)", nargs="?"),),
    ),
    Verb(
        "install-units",
        "People and host",
        "Install or update the services on a host with systemd.",
        "install:install_units",
        (_ROOT, _DRY_RUN_FILES),
        (("hive install-units --dry-run", "shows the difference to what is installed"),),
        "Writes the unit files, users and directories that this program needs where it lies now, and a first "
        "/etc/hyperhive/config.json if there is none; says what to do next. May be repeated: it changes only "
        "what differs.",
    ),
    Verb(
        "uninstall-units",
        "People and host",
        "Stop the services and remove what install-units wrote.",
        "install:uninstall_units",
        (_ROOT, _DRY_RUN_FILES),
        (),
        "Configuration, users, repositories and databases stay.",
    ),
    Verb("version", "People and host", "Print the version.", "local:version"),
)
