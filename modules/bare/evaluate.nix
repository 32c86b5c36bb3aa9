# What hived evaluates in its sandbox: { spec, refusals } of a commit's agent.nix.
{ agent }: (import ./default.nix).mkSpec { inherit agent; }
