-- Budgets of days that are used up, and days of which the ledger cannot know everything.

CREATE TABLE closures (                       -- an agent that gets no more today: what was left was too little
  agent            TEXT PRIMARY KEY,
  day              TEXT NOT NULL,
  budget           TEXT NOT NULL CHECK (budget IN ('agent', 'hive')), -- whose
  ceiling_usd_micro INTEGER NOT NULL,         -- of that budget then; a higher one opens the agent again
  spent_usd_micro  INTEGER NOT NULL,
  needed_usd_micro INTEGER NOT NULL,          -- what the refused request could have cost at least
  closed_at        INTEGER NOT NULL
) STRICT;

CREATE TABLE unknown_days (                   -- days of which the ledger lost something: it was restored on them
  day TEXT PRIMARY KEY,                       -- 'restored': a copy in a backup; whoever opens it writes the day of then
  at  INTEGER NOT NULL                        -- what was spent on that day before this instant is not known
) STRICT;

CREATE TABLE known_before (                   -- what the ledger knew of an unknown day when it was restored
  agent     TEXT PRIMARY KEY,
  usd_micro INTEGER NOT NULL
) STRICT;

CREATE INDEX reservations_by_day ON reservations (day);
