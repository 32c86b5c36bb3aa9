"""Run by hived as the gateway's user: copy `ledger.db` (first argument) to a new file (second argument).

The ledger and the directory it lies in belong to that user, so root opens nothing there by name. Turns above
the third argument are left out: a restored hive gives their numbers again. The copy is marked as one, for
whoever opens it does not know what was spent after it was made. Standard library only and self-contained,
since it is handed to the interpreter as text. Prints the number of its schema.
"""

import sqlite3
import sys
from contextlib import closing
from urllib.parse import quote


def main() -> None:
    """The copy is consistent however busy the gateway is."""
    source, target, last_turn = sys.argv[1:]
    with (
        closing(sqlite3.connect(f"file:{quote(source)}?mode=rw", uri=True, isolation_level=None)) as live,
        closing(sqlite3.connect(target, isolation_level=None)) as copy,
    ):
        live.execute("PRAGMA busy_timeout = 5000")
        live.backup(copy)
        copy.execute(
            "DELETE FROM turn_tokens WHERE turn LIKE 'turn %' AND CAST(substr(turn, 6) AS INTEGER) > ?",
            (int(last_turn),),
        )
        if copy.execute("SELECT 1 FROM sqlite_schema WHERE name = 'unknown_days'").fetchone():
            copy.execute("INSERT OR IGNORE INTO unknown_days VALUES ('restored', 0)")
        copy.execute("PRAGMA journal_mode = DELETE")
        sys.stdout.write(str(copy.execute("PRAGMA user_version").fetchone()[0]))


if __name__ == "__main__":
    main()
