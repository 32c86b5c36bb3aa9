-- Messages that were set aside, and troubles that all agents share.

ALTER TABLE messages ADD COLUMN returned_at INTEGER;           -- when a turn over it last failed
ALTER TABLE messages ADD COLUMN deferred INTEGER NOT NULL DEFAULT 0; -- others go first
ALTER TABLE messages ADD COLUMN set_aside_at INTEGER;          -- it failed too often: delivered no more (its state is 'acked')
CREATE INDEX messages_set_aside ON messages (recipient, set_aside_at) WHERE set_aside_at IS NOT NULL;

CREATE TABLE troubles (                       -- of the model's host, as the gateway sees it; a row goes some time after its end
  key       TEXT PRIMARY KEY,                 -- 'credential', 'credit', 'unavailable', or 'limit MODEL'
  message   TEXT NOT NULL,
  since_at  INTEGER NOT NULL,
  until_at  INTEGER NOT NULL,                 -- nobody asks before that; then one agent does, for all
  tries     INTEGER NOT NULL DEFAULT 0,       -- how often somebody asked in vain since
  told      INTEGER NOT NULL DEFAULT 0,       -- whether the operator knows
  over_at   INTEGER                           -- when a request succeeded again
) STRICT;
