{
  description = "An agent of a hyperhive";

  # The hive never runs this file: it evaluates agent.nix with its own modules. It is here for people, so that
  # `nix build` and `nix flake check` work in this repository.
  inputs.hyperhive.url = "hyperhive";

  outputs =
    inputs@{ hyperhive, ... }:
    hyperhive.lib.mkAgent {
      inherit inputs;
      agent = ./agent.nix;
    };
}
