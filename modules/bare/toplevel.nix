# The read-only root of a container on the bare platform: a skeleton over the host's /usr, and the spec for reading.
#
# Every directory that nspawn mounts on or would make is there, so that a start never writes into the store.
# The builder is /bin/sh with mkdir, ln and cp: busybox in Nix's sandbox (`sandbox-paths = /bin/sh=/bin/busybox`).
{
  name,
  spec,
  system,
}:
let
  file = builtins.toFile;
in
derivation {
  name = "hive-${name}";
  inherit system;
  builder = "/bin/sh";
  preferLocalBuild = true;
  allowSubstitutes = false;
  # Outside a sandbox /bin/sh finds its tools here; busybox has them built in.
  PATH = "/usr/bin:/bin";

  directories = "usr proc sys dev run tmp var root etc/alternatives etc/hyperhive state home/agent config agents opt/hive/lib/harness opt/hive/venv";
  links = "bin sbin lib lib64";

  spec = file "spec.json" (builtins.toJSON spec);
  passwd = file "passwd" ''
    root:x:0:0::/:/usr/sbin/nologin
    agent:x:1000:1000::/home/agent:/bin/bash
    nobody:x:65534:65534::/:/usr/sbin/nologin
  '';
  group = file "group" ''
    root:x:0:
    agent:x:1000:
    nogroup:x:65534:
  '';
  hosts = file "hosts" ''
    127.0.0.1 localhost ${name}
    ::1 localhost ${name}
  '';
  nsswitch = file "nsswitch.conf" ''
    passwd: files
    group: files
    hosts: files
  '';
  release = file "os-release" ''
    NAME=hyperhive
    ID=hyperhive
    PRETTY_NAME="hyperhive agent"
  '';

  args = [
    "-euc"
    ''
      for directory in $directories; do mkdir -p "$out/$directory"; done
      for link in $links; do ln -s "usr/$link" "$out/$link"; done
      ln -s ../tmp "$out/var/tmp"
      cp "$passwd" "$out/etc/passwd"
      cp "$group" "$out/etc/group"
      cp "$hosts" "$out/etc/hosts"
      cp "$nsswitch" "$out/etc/nsswitch.conf"
      cp "$release" "$out/etc/os-release"
      cp "$spec" "$out/etc/hyperhive/spec.json"
      : > "$out/etc/machine-id"
      : > "$out/etc/resolv.conf"
    ''
  ];
}
