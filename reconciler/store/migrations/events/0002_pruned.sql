-- Up to which id rows of a table may have been pruned: what lies there is no longer all that was.

CREATE TABLE pruned (
  name TEXT PRIMARY KEY,                      -- of the table
  upto INTEGER NOT NULL
) STRICT;
