{
  description = "A host with a hyperhive";

  inputs = {
    hyperhive.url = "hyperhive";
    nixpkgs.follows = "hyperhive/nixpkgs";
  };

  outputs =
    { hyperhive, nixpkgs, ... }:
    {
      nixosConfigurations.hive = nixpkgs.lib.nixosSystem {
        system = "x86_64-linux";
        modules = [
          hyperhive.nixosModules.default
          ./configuration.nix
        ];
      };
    };
}
