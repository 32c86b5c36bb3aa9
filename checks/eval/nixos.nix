# The NixOS modules evaluated with nixpkgs' lib alone: options, assertions and the rendered configuration.
#
# Stand-ins take what the modules set of NixOS itself, so units are not checked against NixOS's own types here.
# `lib` is a path: `nix-instantiate --eval --strict --json checks/eval/nixos.nix --arg lib NIXPKGS/lib`.
{ lib, agents ? [ ] }:
let
  library = import lib;

  anything = library.mkOption {
    type = library.types.attrsOf library.types.anything;
    default = { };
  };
  lines = library.mkOption {
    type = library.types.listOf library.types.anything;
    default = [ ];
  };
  standIns = {
    options = {
      assertions = lines;
      warnings = lines;
      boot = anything;
      environment = anything;
      networking = anything;
      nix = anything;
      systemd = anything;
      users = anything;
    };
  };
  package = name: {
    type = "derivation";
    outPath = "/nix/store/${name}";
    inherit name;
  };
  pkgs = {
    runCommand = name: attrs: _: package name // attrs;
  }
  // library.genAttrs [ "bubblewrap" "coreutils" "git" "systemd" "util-linux" ] package;

  evaluate =
    modules:
    (library.evalModules {
      modules = [ standIns ] ++ modules;
      specialArgs = { inherit pkgs; };
    }).config;

  host =
    settings:
    let
      config = evaluate [
        ../../modules/host.nix
        {
          nix.package = package "nix";
          services.hyperhive = {
            enable = true;
            source = "/opt/hyperhive";
            python = package "python";
          }
          // settings;
        }
      ];
    in
    {
      rendered = builtins.fromJSON config.environment.etc."hyperhive/config.json".source.rendered;
      failed = map (entry: entry.message) (builtins.filter (entry: !entry.assertion) config.assertions);
      units = builtins.mapAttrs (_: unit: unit.serviceConfig) config.systemd.services;
      users = builtins.attrNames config.users.users;
    };

  agent =
    settings:
    let
      config = evaluate [
        ../../modules/agent.nix
        { hyperhive = settings; }
      ];
      spec = config.hyperhive;
      result = builtins.tryEval (builtins.deepSeq spec spec);
    in
    if result.success then result.value else null;
in
{
  plain = host { };
  changed = host {
    gateway.credentialFile = "/run/secrets/anthropic";
    ui.port = 8080;
    uidRange.end = 65536;
  };
  secretInStore = (builtins.tryEval (host { gateway.credentialFile = "${builtins.storeDir}/x"; }).rendered).success;
  disabled = (evaluate [ ../../modules/host.nix ]).environment;
  # What each of these settings of an agent gives: the spec, or null if its types refuse it.
  agents = map agent (if builtins.isList agents then agents else builtins.fromJSON (builtins.readFile agents));
}
