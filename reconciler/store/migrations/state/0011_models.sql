-- A model that a turn's requests named, or that answered, other than the one the turn was given.

ALTER TABLE turns ADD COLUMN other_model TEXT;
