# A machine that hosts a hive. Add the hardware's own configuration beside it.
{
  services.hyperhive = {
    enable = true;

    # A file that only root can read; its content never enters the Nix store.
    gateway.credentialFile = "/run/secrets/anthropic";
  };

  # People who decide: members of the group may use `hive`.
  users.groups.hive.members = [ ];
}
