# The units that modules/host.nix makes of modules/units.json, without nixpkgs: the module is called as a function,
# with stand-ins for the few functions of `lib` that it uses and for the options' values.
#
# nix-instantiate --eval --strict --json checks/eval/host.nix --argstr driver systemd
{ driver }:
let
  lib = {
    filter = builtins.filter;
    genAttrs =
      names: make:
      builtins.listToAttrs (
        map (name: {
          inherit name;
          value = make name;
        }) names
      );
    mkDefault = value: value;
    mkIf = condition: value: if condition then value else { };
    optional = condition: value: if condition then [ value ] else [ ];
    optionalAttrs = condition: value: if condition then value else { };
    recursiveUpdate =
      left: right:
      left
      // builtins.mapAttrs (
        name: value:
        if builtins.isAttrs value && builtins.isAttrs (left.${name} or null) then
          lib.recursiveUpdate left.${name} value
        else
          value
      ) right;
    splitString = by: text: builtins.filter builtins.isString (builtins.split by text);
  };

  services.hyperhive = {
    enable = true;
    platform = "bare";
    inherit driver;
    source = "/opt/hyperhive";
    python = "/python";
    stateDir = "/var/lib/hyperhive";
    runDir = "/run/hyperhive";
    operatorGroup = "hive";
    uidRange = {
      start = 1048576;
      end = 2097152;
    };
    ui = {
      user = "hive-ui";
      port = 7000;
    };
    build = {
      user = "hive-build";
      parallel = 2;
    };
    gateway = {
      user = "hive-gateway";
      credentialFile = "/run/secrets/key";
    };
  };

  module = import ../../modules/host.nix {
    inherit lib;
    config = {
      inherit services;
      nix.package = "nix";
    };
    pkgs = {
      runCommand = name: _: _: name;
    }
    // lib.genAttrs [ "bubblewrap" "coreutils" "git" "systemd" "util-linux" ] (name: name);
  };
in
{
  inherit (module.config.systemd) services sockets slices;
  tmpfiles = module.config.systemd.tmpfiles.rules;
}
