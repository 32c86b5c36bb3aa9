"""The systemd units of the hive's services: one description for `hive install-units` and the NixOS module.

`model` is what a unit is made of and how it is written, `hardening` the strictest set, `catalogue` the units,
`files` everything that is installed on a host, `installing` does it, `nixos` writes `modules/units.json`.
The template unit of agents' containers is `reconciler.effects.containers.unitfile`.
"""
