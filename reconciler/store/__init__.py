"""Two SQLite files: `state.db` (the truth) and `events.db` (history). Only this package imports sqlite.

`db` holds connections and transactions; every other module here is the SQL of one kind of row, as functions
of a transaction.
"""
