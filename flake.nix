{
  description = "hyperhive: a hive of coding agents, each a git commit, an operator's approval and an unprivileged container";

  # Pinned by revision. Only what is built from nixpkgs asks for it: the library, the modules, the templates and
  # the bare platform's checks evaluate without it.
  inputs.nixpkgs.url = "github:NixOS/nixpkgs/ac62194c3917d5f474c1a844b6fd6da2db95077d";

  outputs =
    { self, nixpkgs }:
    let
      bare = import ./modules/bare;
      systems = [
        "x86_64-linux"
        "aarch64-linux"
      ];
      forSystems =
        make:
        builtins.listToAttrs (
          map (system: {
            name = system;
            value = make system;
          }) systems
        );

      # What requirements/host.in names, from nixpkgs. Packages of the product of their own come with NixOS.
      hostPython =
        pkgs:
        pkgs.python3.withPackages (p: [
          p.aiohttp
          p.aiosqlite
          p.dbus-next
          p.gitpython
          p.jinja2
          p.jsonschema
          p.pydantic
          p.pygments
          p.pyyaml
          p.structlog
        ]);

      host =
        { lib, pkgs, ... }:
        {
          imports = [ ./modules/host.nix ];
          services.hyperhive = {
            source = lib.mkDefault self;
            python = lib.mkDefault (hostPython pkgs);
          };
        };
    in
    {
      lib = {
        # Outputs of an agent's own flake: `nix build` and `nix flake check` work in its repository.
        inherit (bare) mkAgent;
        bare = {
          inherit (bare) mkSpec mkToplevel options;
        };
      };

      nixosModules = {
        default = host;
        inherit host;
        agent = import ./modules/agent.nix;
      };

      templates = {
        agent = {
          path = ./modules/templates/agent;
          description = "The repository of an agent";
        };
        host = {
          path = ./modules/templates/host;
          description = "A NixOS host with a hive";
        };
      };

      # Of the bare platform: raw derivations, offline.
      checks = forSystems (system: {
        bare = import ./checks/eval/derivation.nix { inherit system; };
        agent-template = (bare.mkAgent { agent = ./modules/templates/agent/agent.nix; }).checks.${system}.agent;
      });

      nixosConfigurations.example = nixpkgs.lib.nixosSystem {
        system = "x86_64-linux";
        modules = [
          host
          ./modules/templates/host/configuration.nix
          {
            # What any machine needs and this one has none of.
            boot.loader.grub.device = "nodev";
            fileSystems."/".device = "none";
            system.stateVersion = "25.05";
          }
        ];
      };

      devShells = forSystems (
        system:
        let
          pkgs = nixpkgs.legacyPackages.${system};
        in
        {
          default = pkgs.mkShell {
            packages = [
              (hostPython pkgs)
              pkgs.bubblewrap
              pkgs.git
              pkgs.nodejs
              pkgs.ruff
              pkgs.shellcheck
            ];
          };
        }
      );

      formatter = forSystems (system: nixpkgs.legacyPackages.${system}.nixfmt-rfc-style);
    };
}
