# What hived builds: the root of an agent from the spec that was approved, never from the agent's own Nix code.
{
  name,
  # A JSON file with the validated spec.
  specFile,
  system ? builtins.currentSystem,
}:
(import ./default.nix).mkToplevel {
  inherit name system;
  spec = builtins.fromJSON (builtins.readFile specFile);
}
