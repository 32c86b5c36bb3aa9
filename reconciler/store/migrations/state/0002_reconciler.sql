-- Holds, rollbacks, attached people, purge.

ALTER TABLE proposals ADD COLUMN rollback_of INTEGER;          -- the operator's rollback: the generation it goes back to
ALTER TABLE proposals ADD COLUMN purged INTEGER NOT NULL DEFAULT 0; -- its agent's repository and state are gone
ALTER TABLE agents ADD COLUMN purge_wanted INTEGER NOT NULL DEFAULT 0;
ALTER TABLE agents DROP COLUMN held;

CREATE TABLE holds (
  scope  TEXT PRIMARY KEY,                    -- an agent's name, or '*': the whole hive
  by     TEXT NOT NULL,
  reason TEXT NOT NULL DEFAULT '',
  at     INTEGER NOT NULL
) STRICT;

CREATE TABLE attachments (                    -- people who are inside a container now; a pass does not restart it
  id         TEXT PRIMARY KEY,
  agent      TEXT NOT NULL,
  by         TEXT NOT NULL,
  since      INTEGER NOT NULL,
  expires_at INTEGER NOT NULL                 -- unless renewed
) STRICT;
CREATE INDEX attachments_by_agent ON attachments (agent, expires_at);
