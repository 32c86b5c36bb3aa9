-- events.db: history. Large, prunable, synchronous=NORMAL; rows are idempotent copies (outbox_id) or told by containers.

CREATE TABLE events (
  id        INTEGER PRIMARY KEY AUTOINCREMENT,
  ts        INTEGER NOT NULL,
  agent     TEXT,
  kind      TEXT NOT NULL,
  data      TEXT NOT NULL,
  outbox_id INTEGER,                          -- the row of state.db's outbox it was copied from
  UNIQUE (outbox_id, ts)                      -- with ts: a restored state.db counts its outbox again
) STRICT;
CREATE INDEX events_by_agent ON events (agent, id);
CREATE INDEX events_of_state ON events (agent, id) WHERE kind = 'agent.state';

CREATE TABLE transcript (
  id      INTEGER PRIMARY KEY AUTOINCREMENT,
  agent   TEXT NOT NULL,
  turn_id INTEGER NOT NULL,
  seq     INTEGER NOT NULL,                   -- 0: turn_begin; 1..: told by the harness; 2000000000: turn_end
  at      INTEGER NOT NULL,
  kind    TEXT NOT NULL,
  data    TEXT NOT NULL,
  UNIQUE (turn_id, seq)
) STRICT;
CREATE INDEX transcript_by_agent ON transcript (agent, id);
CREATE INDEX transcript_of_context ON transcript (agent, id) WHERE kind = 'context';

CREATE TABLE build_log (
  id          INTEGER PRIMARY KEY AUTOINCREMENT,
  proposal_id INTEGER NOT NULL,
  at          INTEGER NOT NULL,
  text        TEXT NOT NULL
) STRICT;
CREATE INDEX build_log_by_proposal ON build_log (proposal_id, id);

CREATE TABLE stats (
  agent TEXT NOT NULL,
  ts    INTEGER NOT NULL,
  key   TEXT NOT NULL,
  value REAL NOT NULL
) STRICT;
CREATE INDEX stats_by_key ON stats (agent, key, ts);
