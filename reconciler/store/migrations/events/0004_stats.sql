-- Figures as they were counted, what is left of old ones, and what has been counted already.

ALTER TABLE stats RENAME TO stats_before;
CREATE TABLE stats (
  agent  TEXT NOT NULL,                       -- 'hive': of the whole hive
  ts     INTEGER NOT NULL,
  key    TEXT NOT NULL,
  value  REAL NOT NULL,
  source INTEGER NOT NULL DEFAULT 0,          -- the number of the turn or message it is of; 0: neither
  PRIMARY KEY (agent, key, ts, source)
) STRICT, WITHOUT ROWID;
INSERT OR IGNORE INTO stats (agent, ts, key, value)
  SELECT agent, ts, CASE key WHEN 'turn_duration_s' THEN 'turn_duration' ELSE key END, value FROM stats_before;
DROP TABLE stats_before;

CREATE TABLE stats_hours (                    -- rows of `stats` that grew old, an hour in one
  agent   TEXT NOT NULL,
  key     TEXT NOT NULL,
  ts      INTEGER NOT NULL,                   -- its begin
  count   INTEGER NOT NULL,
  sum     REAL NOT NULL,
  high    REAL NOT NULL,
  last    REAL NOT NULL,
  last_ts INTEGER NOT NULL,
  sketch  TEXT NOT NULL,                      -- JSON, see reconciler.stats.sketch; empty where no percentile is asked
  PRIMARY KEY (agent, key, ts)
) STRICT, WITHOUT ROWID;

CREATE TABLE stats_totals (                   -- sums of everything ever counted; pruning does not lower them
  agent TEXT NOT NULL,
  key   TEXT NOT NULL,
  value REAL NOT NULL,
  PRIMARY KEY (agent, key)
) STRICT, WITHOUT ROWID;
INSERT INTO stats_totals
  SELECT agent, 'starts', COUNT(*) FROM events WHERE kind = 'agent.started' AND agent IS NOT NULL GROUP BY agent;

CREATE TABLE stats_tools (                    -- tools that have a key of their own
  agent   TEXT NOT NULL,
  name    TEXT NOT NULL,
  seen_at INTEGER NOT NULL,
  PRIMARY KEY (agent, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE stats_spent (                    -- how much of each row of the ledger has been counted
  agent              TEXT NOT NULL,
  day                TEXT NOT NULL,
  model              TEXT NOT NULL,
  input_tokens       INTEGER NOT NULL,
  output_tokens      INTEGER NOT NULL,
  cache_read_tokens  INTEGER NOT NULL,
  cache_write_tokens INTEGER NOT NULL,
  usd_micro          INTEGER NOT NULL,
  PRIMARY KEY (agent, day, model)
) STRICT, WITHOUT ROWID;

CREATE TABLE stats_turns (                    -- turns above the mark 'turns' that have been counted
  turn_id INTEGER PRIMARY KEY
) STRICT;

CREATE TABLE stats_marks (
  name  TEXT PRIMARY KEY,                     -- 'turns': all up to this one have been counted; 'hours': see stats_hours
  value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO stats_turns SELECT turn_id FROM transcript WHERE seq = 2000000000;
INSERT INTO stats_marks SELECT 'turns', COALESCE(MIN(turn_id), 1) - 1 FROM transcript;
