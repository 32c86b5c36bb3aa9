-- Budgets of a day: what the operator added, what was told, who waits for the day's end. Days are host-local, YYYY-MM-DD.

CREATE TABLE budget_additions (
  id        INTEGER PRIMARY KEY AUTOINCREMENT,
  scope     TEXT NOT NULL,                    -- an agent's name, or '*': the hive's budget
  day       TEXT NOT NULL,                    -- the only one on which it counts
  usd_micro INTEGER NOT NULL CHECK (usd_micro > 0),
  by        TEXT NOT NULL,
  note      TEXT NOT NULL DEFAULT '',
  at        INTEGER NOT NULL
) STRICT;
CREATE INDEX budget_additions_by_day ON budget_additions (day, scope);

CREATE TABLE budget_notices (                 -- what people were told, once
  day               TEXT NOT NULL,
  scope             TEXT NOT NULL,
  kind              TEXT NOT NULL CHECK (kind IN ('warned', 'reached', 'unknown')),
  ceiling_usd_micro INTEGER NOT NULL,
  at                INTEGER NOT NULL,
  PRIMARY KEY (day, scope, kind, ceiling_usd_micro)
) STRICT;

ALTER TABLE agents ADD COLUMN budget_until_at INTEGER;            -- no turn before: a budget of the day is used up
ALTER TABLE agents ADD COLUMN budget_reason TEXT NOT NULL DEFAULT '';
