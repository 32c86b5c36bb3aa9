-- state.db: the truth. Small, precious, synchronous=FULL. Instants (_at) are integer microseconds since the epoch, UTC.

CREATE TABLE agents (
  name            TEXT PRIMARY KEY,
  role            TEXT NOT NULL CHECK (role IN ('agent', 'manager')),
  uid_base        INTEGER NOT NULL UNIQUE CHECK (uid_base % 65536 = 0),
  desired         TEXT NOT NULL CHECK (desired IN ('running', 'stopped', 'destroyed')),
  generation      INTEGER,                    -- the generation that should run; NULL before the first deployment
  held            INTEGER NOT NULL DEFAULT 0,
  model_override  TEXT,                       -- the operator's; NULL: the spec's
  model_switched_at INTEGER,
  model_switched_by TEXT,
  session_id      TEXT NOT NULL,              -- UUID of the conversation, chosen by the host
  session_used    INTEGER NOT NULL DEFAULT 0, -- whether a turn has used it, so that it must be resumed
  status          TEXT NOT NULL DEFAULT '',
  wake_not_before_at INTEGER,
  nap_reason      TEXT NOT NULL DEFAULT '',
  parked_until_at INTEGER,
  parked_reason   TEXT NOT NULL DEFAULT '',
  restart_wanted  INTEGER NOT NULL DEFAULT 0, -- grows by one per requested restart
  restart_done    INTEGER NOT NULL DEFAULT 0,
  crashes         INTEGER NOT NULL DEFAULT 0, -- in a row, since the last healthy stretch
  crashed_at      INTEGER,
  crash_seen      TEXT,                       -- invocation whose end was told
  stop_intent     TEXT,                       -- invocation that hived itself is ending
  created_at      INTEGER NOT NULL
) STRICT;

CREATE UNIQUE INDEX one_manager ON agents (role) WHERE role = 'manager' AND desired <> 'destroyed';

CREATE TABLE proposals (
  id            INTEGER PRIMARY KEY AUTOINCREMENT,
  kind          TEXT NOT NULL CHECK (kind IN ('apply', 'spawn')),
  agent         TEXT NOT NULL,
  commit_id     TEXT NOT NULL,
  base_commit   TEXT,
  state         TEXT NOT NULL,
  risk          TEXT,
  changes       TEXT NOT NULL DEFAULT '[]',   -- JSON list of control.models.Change
  files         TEXT NOT NULL DEFAULT '[]',
  spec          TEXT,                         -- JSON, canonical
  spec_digest   TEXT,
  state_digest  TEXT,                         -- sha256 of the staged state tar
  state_files   TEXT NOT NULL DEFAULT '[]',
  digest        TEXT,                         -- what an approval binds to
  role          TEXT NOT NULL DEFAULT 'agent',
  requested_by  TEXT NOT NULL,
  turn_id       INTEGER,                      -- the turn it was made in
  description   TEXT NOT NULL DEFAULT '',
  note          TEXT NOT NULL DEFAULT '',
  decided_by    TEXT,
  activate_now  INTEGER NOT NULL DEFAULT 0,
  generation    INTEGER,
  store_path    TEXT,
  error         TEXT NOT NULL DEFAULT '',
  created_at    INTEGER NOT NULL,
  decided_at    INTEGER,
  activating_at INTEGER,
  UNIQUE (agent, commit_id, kind, id)
) STRICT;
CREATE INDEX proposals_by_state ON proposals (state, agent);

CREATE TABLE proposal_progress (
  proposal_id INTEGER NOT NULL REFERENCES proposals (id),
  state       TEXT NOT NULL,
  at          INTEGER NOT NULL,
  PRIMARY KEY (proposal_id, state)
) STRICT;

CREATE TABLE generations (
  agent       TEXT NOT NULL,
  number      INTEGER NOT NULL,
  proposal_id INTEGER NOT NULL REFERENCES proposals (id),
  commit_id   TEXT NOT NULL,
  store_path  TEXT NOT NULL,
  spec        TEXT NOT NULL,
  spec_digest TEXT NOT NULL,
  prompt      TEXT NOT NULL DEFAULT '',
  state       TEXT NOT NULL CHECK (state IN ('candidate', 'deployed', 'failed')),
  created_at  INTEGER NOT NULL,
  PRIMARY KEY (agent, number)
) STRICT;

CREATE TABLE messages (
  id          INTEGER PRIMARY KEY AUTOINCREMENT,
  sender      TEXT NOT NULL,
  recipient   TEXT NOT NULL,
  body        TEXT NOT NULL,
  kind        TEXT NOT NULL DEFAULT 'message' CHECK (kind IN ('message', 'event', 'answer')),
  urgent      INTEGER NOT NULL DEFAULT 0,
  in_reply_to INTEGER,
  turn_id     INTEGER,                        -- the sender's turn
  dedupe_key  TEXT,
  state       TEXT NOT NULL CHECK (state IN ('queued', 'leased', 'acked', 'read')),
  redelivered INTEGER NOT NULL DEFAULT 0,     -- it came back from a lease at least once
  failures    INTEGER NOT NULL DEFAULT 0,     -- turns over it that failed by themselves
  lease_id    INTEGER REFERENCES leases (id), -- the lease that holds or consumed it
  sent_at     INTEGER NOT NULL,
  UNIQUE (sender, recipient, dedupe_key)
) STRICT;
CREATE INDEX messages_queue ON messages (recipient, state, id);
CREATE INDEX messages_by_lease ON messages (lease_id) WHERE lease_id IS NOT NULL;

CREATE TABLE leases (
  id         INTEGER PRIMARY KEY AUTOINCREMENT,
  agent      TEXT NOT NULL,
  boot       TEXT NOT NULL,                   -- the harness process that holds it
  turn_id    INTEGER,
  state      TEXT NOT NULL CHECK (state IN ('open', 'acked', 'returned')),
  created_at INTEGER NOT NULL,
  ended_at   INTEGER
) STRICT;
CREATE INDEX leases_open ON leases (agent, state);
CREATE INDEX leases_by_turn ON leases (turn_id) WHERE turn_id IS NOT NULL;

CREATE TABLE turns (                          -- open and recent turns; history is copied to events.db
  id         INTEGER PRIMARY KEY AUTOINCREMENT,
  agent      TEXT NOT NULL,
  boot       TEXT NOT NULL,
  start_key  TEXT NOT NULL,
  lease_id   INTEGER,                         -- the one it began with
  session_id TEXT NOT NULL,
  model      TEXT NOT NULL,
  generation INTEGER,
  state      TEXT NOT NULL CHECK (state IN ('open', 'ended')),
  outcome    TEXT,
  error      TEXT NOT NULL DEFAULT '',
  begun_at   INTEGER NOT NULL,
  ended_at   INTEGER,
  UNIQUE (agent, start_key)
) STRICT;
CREATE INDEX turns_open ON turns (agent, state);

CREATE TABLE directives (
  id         INTEGER PRIMARY KEY AUTOINCREMENT,
  agent      TEXT NOT NULL,
  kind       TEXT NOT NULL,
  data       TEXT NOT NULL DEFAULT '{}',
  created_at INTEGER NOT NULL
) STRICT;
CREATE INDEX directives_by_agent ON directives (agent, id);

CREATE TABLE questions (
  id          INTEGER PRIMARY KEY AUTOINCREMENT,
  agent       TEXT NOT NULL,
  question    TEXT NOT NULL,
  options     TEXT NOT NULL DEFAULT '[]',
  multi       INTEGER NOT NULL DEFAULT 0,
  dedupe_key  TEXT NOT NULL,
  asked_at    INTEGER NOT NULL,
  expires_at  INTEGER,
  state       TEXT NOT NULL CHECK (state IN ('open', 'answered', 'expired', 'cancelled')),
  answer      TEXT,
  answered_by TEXT,
  answered_at INTEGER,
  UNIQUE (agent, dedupe_key)
) STRICT;

CREATE TABLE drafts (
  name        TEXT PRIMARY KEY,
  created_by  TEXT NOT NULL,
  commit_id   TEXT NOT NULL,
  proposal_id INTEGER REFERENCES proposals (id),
  created_at  INTEGER NOT NULL
) STRICT;

CREATE TABLE users (
  name       TEXT PRIMARY KEY,
  role       TEXT NOT NULL CHECK (role IN ('viewer', 'operator')),
  created_at INTEGER NOT NULL
) STRICT;

CREATE TABLE login_tokens (
  token_hash TEXT PRIMARY KEY,                -- sha256 of the token
  user       TEXT NOT NULL REFERENCES users (name),
  expires_at INTEGER NOT NULL,
  used_at    INTEGER
) STRICT;

CREATE TABLE sessions (
  id           INTEGER PRIMARY KEY AUTOINCREMENT,
  secret_hash  TEXT NOT NULL UNIQUE,
  csrf         TEXT NOT NULL,
  user         TEXT NOT NULL REFERENCES users (name),
  created_at   INTEGER NOT NULL,
  last_seen_at INTEGER NOT NULL,
  expires_at   INTEGER NOT NULL,
  revoked_at   INTEGER
) STRICT;

CREATE TABLE audit (
  id     INTEGER PRIMARY KEY AUTOINCREMENT,
  at     INTEGER NOT NULL,
  actor  TEXT NOT NULL,
  action TEXT NOT NULL,
  target TEXT NOT NULL,
  data   TEXT NOT NULL,                       -- canonical JSON
  hash   TEXT NOT NULL                        -- sha256(previous hash || canonical JSON of the row)
) STRICT;

CREATE TABLE outbox (                         -- effects that must follow a commit, done at least once, in order
  id         INTEGER PRIMARY KEY AUTOINCREMENT,
  kind       TEXT NOT NULL,                   -- 'event': copy to events.db; 'tag': project a git tag; 'meta': deploy log
  data       TEXT NOT NULL,
  created_at INTEGER NOT NULL,
  error      TEXT NOT NULL DEFAULT ''         -- why it was given up until the next start
) STRICT;
