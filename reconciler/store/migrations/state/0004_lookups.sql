-- What is looked for by every message, and by every page of questions, whatever lies behind.

CREATE INDEX messages_by_key ON messages (sender, dedupe_key) WHERE dedupe_key IS NOT NULL;
CREATE INDEX messages_by_sender ON messages (sender, id);
CREATE INDEX messages_by_recipient ON messages (recipient, id);
CREATE INDEX questions_open ON questions (expires_at) WHERE state = 'open';
