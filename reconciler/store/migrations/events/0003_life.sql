-- What happened to an agent's container, which is rare among all that its turns tell.

CREATE INDEX events_of_life ON events (agent, id) WHERE kind IN
  ('agent.started', 'agent.crashed', 'agent.stopped_by_hand', 'agent.repaired', 'agent.trouble');
