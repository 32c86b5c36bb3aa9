-- When an agent last said what it is doing.

ALTER TABLE agents ADD COLUMN status_at INTEGER;
