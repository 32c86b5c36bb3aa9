-- The loop guard: how far a message is from the last word of somebody who is no agent, and from when on it may be delivered.

ALTER TABLE messages ADD COLUMN hops INTEGER NOT NULL DEFAULT 0;
ALTER TABLE messages ADD COLUMN due_at INTEGER DEFAULT 0;     -- 0: at once; NULL: held until the operator decides (acked and NULL: dropped)
ALTER TABLE agents ADD COLUMN hops INTEGER NOT NULL DEFAULT 0; -- of what it last took up
CREATE INDEX messages_slowed ON messages (recipient, id) WHERE state = 'queued' AND (due_at IS NULL OR due_at > 0);
