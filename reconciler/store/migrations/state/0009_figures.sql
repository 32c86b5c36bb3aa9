-- What the host counted of a turn when it ended.

ALTER TABLE turns ADD COLUMN figures TEXT;                     -- JSON: received, sent, inbox_depth
CREATE INDEX messages_by_turn ON messages (turn_id) WHERE turn_id IS NOT NULL;
