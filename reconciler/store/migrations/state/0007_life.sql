-- What turns are for, and compactions that the operator asked for.

ALTER TABLE turns ADD COLUMN purpose TEXT NOT NULL DEFAULT 'messages'; -- messages, compaction or notes
ALTER TABLE agents ADD COLUMN compact_wanted INTEGER NOT NULL DEFAULT 0;
