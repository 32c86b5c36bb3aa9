# The types of `bare/types.nix` as NixOS types, so that both platforms refuse the same values in the same words.
{ lib }:
let
  checker = import ./bare/types.nix;

  # Whether the bare checker has nothing against a value; a prompt's existence is a matter of the commit.
  accepts = type: value: (checker.check { root = null; } "value" type value).refusals == [ ];
  # addCheck forgets its check when the module system puts in the submodules of a type; this one keeps it.
  withCheck =
    base: holds:
    lib.types.addCheck base holds
    // {
      substSubModules = modules: withCheck (base.substSubModules modules) holds;
    };
  checked = base: type: withCheck base (accepts type);
  described =
    type: nixosType:
    nixosType
    // {
      description = type.allowed;
      substSubModules = modules: described type (nixosType.substSubModules modules);
    };

  convert =
    type:
    described type (
      {
        string = checked lib.types.str type;
        bashPattern = checked lib.types.str type;
        file = checked (lib.types.either lib.types.path lib.types.str) type;
        enum = lib.types.enum type.values;
        integer = checked lib.types.int type;
        number = checked (lib.types.either lib.types.int lib.types.float) type;
        boolean = lib.types.bool;
        list = withCheck (lib.types.listOf (convert type.of)) (
          value: !builtins.isList value || type.max == null || builtins.length value <= type.max
        );
        emptyList = withCheck (lib.types.listOf lib.types.anything) (value: value == [ ]);
        attrs = withCheck (lib.types.attrsOf (convert type.of)) (
          value:
          !builtins.isAttrs value
          || builtins.all (
            name: builtins.match type.names name != null && !builtins.elem name type.reserved
          ) (builtins.attrNames value)
        );
        record = lib.types.submodule { options = optionsOf type.fields; };
        null = lib.types.nullOr (convert type.of);
      }
      .${type.kind}
    );

  isOption = field: field ? type && field.type ? kind;

  # Options of a table such as `bare/options.nix`.
  optionsOf =
    table:
    builtins.mapAttrs (
      _: field:
      if isOption field then
        lib.mkOption (
          {
            type = convert field.type;
            description = field.description or "Allowed: ${field.type.allowed}.";
          }
          // lib.optionalAttrs (field ? default) { inherit (field) default; }
          // lib.optionalAttrs (field ? example) { inherit (field) example; }
        )
      else
        optionsOf field
    ) table;
in
{
  inherit convert optionsOf;
}
