-- A table WITHOUT ROWID whose columns do not begin with its key, in the key's order, is called damaged by the
-- integrity_check of SQLite 3.40 ("NULL value in stats.value"), and backup and doctor believe it.

ALTER TABLE stats RENAME TO stats_before;
CREATE TABLE stats (
  agent  TEXT NOT NULL,                       -- 'hive': of the whole hive
  key    TEXT NOT NULL,
  ts     INTEGER NOT NULL,
  source INTEGER NOT NULL DEFAULT 0,          -- the number of the turn or message it is of; 0: neither
  value  REAL NOT NULL,
  PRIMARY KEY (agent, key, ts, source)
) STRICT, WITHOUT ROWID;
INSERT INTO stats (agent, key, ts, source, value) SELECT agent, key, ts, source, value FROM stats_before;
DROP TABLE stats_before;
