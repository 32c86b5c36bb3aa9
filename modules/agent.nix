# The agent module: hyperhive.* options on the NixOS platform, from the same table as the bare platform, and what
# every agent's container is. hived evaluates an agent's `agent.nix` together with this.
#
# First version: options, the spec, the container's users and file systems. The unit that runs the harness comes
# with the start of containers on NixOS; until then hived refuses the platform (`containers/arguments.py`).
{ config, lib, ... }:
let
  checker = import ./bare/types.nix;
  table = import ./bare/options.nix { inherit (checker) types; };
  cfg = config.hyperhive;
in
{
  options.hyperhive = (import ./nixos-types.nix { inherit lib; }).optionsOf table;

  config = {
    boot.isContainer = true;

    users.users.agent = {
      isNormalUser = true;
      uid = 1000;
      group = "agent";
      home = "/home/agent";
      # The directory is the host's: bound in, and owned by this uid already.
      createHome = false;
    };
    users.groups.agent.gid = 1000;

    # Loopback only; the two doors are unix sockets.
    networking = {
      hostName = lib.mkDefault "agent";
      useDHCP = false;
      useHostResolvConf = false;
      firewall.enable = false;
    };

    nix.enable = lib.mkDefault cfg.nix.enable;

    # For reading: the harness takes its policy from the host, never from a file inside.
    environment.etc."hyperhive/spec.json".text = builtins.toJSON cfg;
  };
}
