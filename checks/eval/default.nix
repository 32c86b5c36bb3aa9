# What the bare platform accepts and refuses, as a set: name of the case → whether it holds. No nixpkgs.
#
# nix-instantiate --eval --strict checks/eval
let
  bare = import ../../modules/bare;

  spec = module: bare.specOf { inherit module; };
  refuses =
    module: names: map (refusal: refusal.where) (spec module).refusals == names;
  accepts = module: refuses module [ ];
  fails = value: !(builtins.tryEval (builtins.deepSeq value true)).success;
in
{
  "a plain set is accepted" = accepts { hyperhive.model = "opus"; };
  "a module function that uses none of its arguments is accepted" = accepts (
    {
      lib,
      pkgs,
      config,
      ...
    }:
    {
      hyperhive.role = "manager";
    }
  );
  "defaults are filled in" = (spec { }).spec.limits.memoryMax == "4G";
  "a wrong type is refused by its option" = refuses { hyperhive.model = 5; } [ "hyperhive.model" ];
  "an unknown option is refused" = refuses { hyperhive.modle = 5; } [ "hyperhive.modle" ];
  "every wrong option is named" =
    refuses
      {
        hyperhive = {
          model = 5;
          nix.enable = 1;
        };
      }
      [
        "hyperhive.model"
        "hyperhive.nix.enable"
      ];
  "a network is refused" = refuses { hyperhive.network.allow = [ "a.b" ]; } [
    "hyperhive.network.allow"
  ];
  "imports are refused" = refuses { imports = [ ]; } [ "imports" ];
  "NixOS settings are refused" = refuses { environment = { }; } [ "environment" ];
  "mkIf is refused" = refuses { hyperhive.role._type = "if"; } [ "hyperhive.role" ];
  "arguments that nobody gives are refused" = refuses ({ secret }: { }) [ "agent.nix" ];
  "a list is refused" = refuses [ ] [ "agent.nix" ];
  "lib fails where it is used" = fails (spec ({ lib, ... }: { hyperhive.role = lib.x; }));
  "the template is accepted" = accepts (import ../../modules/templates/agent/agent.nix);
}
