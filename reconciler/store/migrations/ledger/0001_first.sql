-- ledger.db: what the gateway spent. Owned by hive-gateway. Money in micro-dollars; days are host-local, YYYY-MM-DD.

CREATE TABLE reservations (                   -- worst cases of requests under way; one found at start is spent
  id            INTEGER PRIMARY KEY AUTOINCREMENT,
  agent         TEXT NOT NULL,
  day           TEXT NOT NULL,
  model         TEXT NOT NULL,
  turn          TEXT NOT NULL,
  input_tokens  INTEGER NOT NULL,
  output_tokens INTEGER NOT NULL,
  usd_micro     INTEGER NOT NULL,
  reserved_at   INTEGER NOT NULL
) STRICT;
CREATE INDEX reservations_by_agent ON reservations (agent, day);

CREATE TABLE spending (
  agent              TEXT NOT NULL,
  day                TEXT NOT NULL,
  model              TEXT NOT NULL,
  requests           INTEGER NOT NULL,
  input_tokens       INTEGER NOT NULL,
  output_tokens      INTEGER NOT NULL,
  cache_read_tokens  INTEGER NOT NULL,
  cache_write_tokens INTEGER NOT NULL,
  usd_micro          INTEGER NOT NULL,
  PRIMARY KEY (agent, day, model)
) STRICT;
CREATE INDEX spending_by_day ON spending (day, agent, model);

CREATE TABLE turn_tokens (                    -- input + output + cache write of a turn, for its budget
  agent    TEXT NOT NULL,
  turn     TEXT NOT NULL,
  tokens   INTEGER NOT NULL,
  spent_at INTEGER NOT NULL,
  PRIMARY KEY (agent, turn)
) STRICT;
