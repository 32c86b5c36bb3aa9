-- How long builds took, for the guess how long the next one takes.

ALTER TABLE proposals ADD COLUMN build_us INTEGER;             -- microseconds from its slot to its store path
CREATE INDEX proposals_by_agent_built ON proposals (agent, id) WHERE build_us IS NOT NULL;
