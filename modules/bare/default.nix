# The bare platform: agents without nixpkgs. `agent.nix` with plain values becomes a spec and a root skeleton.
#
#   mkSpec { agent }                    { spec, refusals }: every wrong option at once, as data
#   specOf { module, root }             the same of a value instead of a file
#   mkToplevel { name, spec, system }   derivation: the read-only root of the container
#   mkAgent { agent, … }                flake outputs for people: `nix build` in the agent's own repository
#
# Works with Nix 2.8 and newer, offline, in pure and restricted evaluation.
let
  checker = import ./types.nix;
  options = import ./options.nix { inherit (checker) types; };

  platform = "this hive runs on the bare platform, without nixpkgs: write plain values";
  fromNixpkgs = name: throw "agent.nix uses `${name}`: ${platform}";
  arguments = {
    config = fromNixpkgs "config";
    lib = fromNixpkgs "lib";
    modulesPath = fromNixpkgs "modulesPath";
    options = fromNixpkgs "options";
    pkgs = fromNixpkgs "pkgs";
    inputs = fromNixpkgs "inputs";
  };

  # The set that agent.nix is, or that its function gives; or why it is neither.
  load =
    raw:
    let
      wanted = if builtins.isFunction raw then builtins.functionArgs raw else { };
      missing = builtins.filter (name: !wanted.${name} && !(arguments ? ${name})) (builtins.attrNames wanted);
      given = if wanted == { } then arguments else builtins.intersectAttrs wanted arguments;
      # With an ellipsis the rest may be given, too; without one only what is named.
      value = if builtins.isFunction raw then raw given else raw;
      refuse = why: {
        value = { };
        refusals = [
          {
            where = "agent.nix";
            inherit why;
            allowed = "a set { hyperhive = { … }; }, or a function { ... }: to one";
          }
        ];
      };
    in
    if builtins.isFunction raw && missing != [ ] then
      refuse "asks for the argument ${builtins.head missing}, which nobody gives"
    else if !builtins.isAttrs value then
      refuse "is a ${builtins.typeOf value}"
    else if value ? _type then
      refuse "is made by lib.mkIf, mkMerge or the like, which need nixpkgs"
    else
      {
        inherit value;
        refusals = [ ];
      };

  topLevel =
    name:
    {
      where = name;
      why =
        if builtins.elem name [ "imports" "config" "options" "disabledModules" ] then
          "is of the NixOS module system, which needs nixpkgs; this is the bare platform"
        else
          "is a NixOS setting; this is the bare platform, which knows hyperhive.* only";
      allowed = "hyperhive.*";
    };

  # `root` is the directory that files of the spec lie in; null: they are not looked for.
  specOf =
    {
      module,
      root ? null,
    }:
    let
      loaded = load module;
      foreign = builtins.filter (name: name != "hyperhive") (builtins.attrNames loaded.value);
      given = loaded.value.hyperhive or { };
      checked = checker.check { inherit root; } "hyperhive" (checker.types.record options) given;
    in
    {
      spec = checked.value;
      refusals = loaded.refusals ++ map topLevel foreign ++ checked.refusals;
    };

  mkSpec =
    { agent }:
    specOf {
      module = import agent;
      root = builtins.dirOf agent;
    };

  mkToplevel = import ./toplevel.nix;

  text =
    refusal:
    "${refusal.where}: ${refusal.why}" + (if refusal.allowed == "" then "" else " (allowed: ${refusal.allowed})");

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

  mkAgent =
    {
      agent,
      name ? "agent",
      # The flake's inputs; the bare platform takes nothing from them.
      inputs ? { },
    }:
    let
      result = mkSpec { inherit agent; };
      spec =
        if result.refusals == [ ] then
          result.spec
        else
          throw "agent.nix is refused:\n${builtins.concatStringsSep "\n" (map text result.refusals)}";
      toplevel = system: mkToplevel { inherit name spec system; };
    in
    {
      hyperhive = { inherit spec; };
      packages = forSystems (system: {
        default = toplevel system;
      });
      checks = forSystems (system: {
        agent = toplevel system;
      });
    };
in
{
  inherit
    mkAgent
    mkSpec
    mkToplevel
    options
    specOf
    ;
}
