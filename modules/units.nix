# The units of the hive's services for NixOS, from units.json, which is made from the same description that
# `hive install-units` writes elsewhere (python -m reconciler.units.nixos). Builtins only.
#
# `driver` is "shim" or "systemd"; `values` fills the @names@ in: python, source, config, state, run, ui_port,
# ui_user, gateway_user, operator_group.
{ driver, values }:
let
  document = builtins.fromJSON (builtins.readFile ./units.json);

  names = builtins.attrNames values;
  fill = builtins.replaceStrings (map (name: "@${name}@") names) (map (name: values.${name}) names);

  # A key with one value is that value, as NixOS has it; one without any is left out.
  settings =
    section:
    builtins.mapAttrs (
      _: found: if builtins.length found == 1 then fill (builtins.head found) else map fill found
    ) (withoutEmpty section);
  withoutEmpty =
    section: removeAttrs section (builtins.filter (key: section.${key} == [ ]) (builtins.attrNames section));

in
{
  # Unit → section → key → value.
  sections = builtins.mapAttrs (_: builtins.mapAttrs (_: settings)) document.${driver};
}
