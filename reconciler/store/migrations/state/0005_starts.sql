-- What a start that is about to be made will be told as (JSON: generation, reason); NULL once it was told.
-- hived may die between the start of a container and its row: the next pass tells it.
ALTER TABLE agents ADD COLUMN start_untold TEXT;
