# Types of options as plain data, and a checker that needs no nixpkgs.
#
# A type is a set with `kind`, what that kind needs, and `allowed`: words for a person who wrote something else.
# `modules/agent.nix` turns the same data into NixOS types, so both platforms refuse the same values.
let
  inherit (builtins)
    all
    attrNames
    concatLists
    concatStringsSep
    elem
    elemAt
    filter
    genList
    head
    isAttrs
    isBool
    isFloat
    isInt
    isList
    isPath
    isString
    length
    listToAttrs
    match
    replaceStrings
    split
    stringLength
    tail
    toJSON
    toString
    typeOf
    ;

  quote = text: "\"${text}\"";

  types = rec {
    # A string; `pattern` must match all of it (POSIX extended, as builtins.match), `max` counts bytes.
    string =
      {
        pattern ? null,
        min ? 0,
        max ? 4096,
        allowed,
      }:
      {
        kind = "string";
        inherit
          pattern
          min
          max
          allowed
          ;
      };
    enum = values: {
      kind = "enum";
      inherit values;
      allowed = "one of ${concatStringsSep ", " (map quote values)}";
    };
    integer =
      {
        min,
        max,
        multipleOf ? 1,
      }:
      {
        kind = "integer";
        inherit min max multipleOf;
        allowed =
          "a whole number from ${toString min} to ${toString max}"
          + (if multipleOf == 1 then "" else ", a multiple of ${toString multipleOf}");
      };
    # A number above `above`; at most `max`, or below `below`.
    number =
      {
        above,
        max ? null,
        below ? null,
      }:
      {
        kind = "number";
        inherit above max below;
        allowed =
          "a number above ${toJSON above}"
          + (if max == null then "" else ", ${toJSON max} at most")
          + (if below == null then "" else ", below ${toJSON below}");
      };
    boolean = {
      kind = "boolean";
      allowed = "true or false";
    };
    listOf =
      {
        of,
        max ? null,
      }:
      {
        kind = "list";
        inherit of max;
        allowed =
          "a list" + (if max == null then "" else ", ${toString max} at most,") + " of: ${of.allowed}";
      };
    # A set with free names that match `names`, less the `reserved` ones.
    attrsOf =
      {
        of,
        names ? ".*",
        reserved ? [ ],
        allowed,
      }:
      {
        kind = "attrs";
        inherit
          of
          names
          reserved
          allowed
          ;
      };
    record = fields: {
      kind = "record";
      inherit fields;
      allowed = "a set of ${concatStringsSep ", " (attrNames fields)}";
    };
    nullOr = of: {
      kind = "null";
      inherit of;
      allowed = "null, or ${of.allowed}";
    };
    # A pattern in Claude Code's Bash(...) grammar that can match at all.
    bashPattern = {
      kind = "bashPattern";
      allowed = "a Claude Code pattern such as \"git *\", 1 to 500 characters, without padding or control characters";
    };
    # A file of the agent's own flake: a relative string, or a path literal below agent.nix.
    file = {
      kind = "file";
      pattern = "[A-Za-z0-9._/-]{1,200}";
      allowed = "a file of the agent's flake, such as \"prompt.md\", without '..'";
    };
    # Nothing but the empty list, and why.
    emptyList = why: {
      kind = "emptyList";
      inherit why;
      allowed = "[ ]";
    };
  };

  ok = value: {
    inherit value;
    refusals = [ ];
  };
  no = where: why: allowed: {
    value = null;
    refusals = [ { inherit where why allowed; } ];
  };

  shown =
    value:
    let
      kind = typeOf value;
      text = if isString value then quote value else toJSON value;
    in
    if isString value || isInt value || isFloat value then
      (if stringLength text > 80 then "a ${kind} of ${toString (stringLength text)} characters" else text)
    else if isBool value then
      (if value then "true" else "false")
    else if value == null then
      "null"
    else if kind == "set" then
      "a set"
    else
      "a ${kind}";

  hasControl = text: length (split "[[:cntrl:]]" text) > 1;
  isNumber = value: isInt value || isFloat value;

  # What a Bash(...) pattern says between the brackets.
  inner =
    text:
    let
      whole = match "Bash\\((.*)\\)" text;
    in
    if whole == null then text else elemAt whole 0;

  # Whether a pattern without padding and control characters can match any command at all: the policy's own grammar
  # (harness/policy/patterns.py, `problem`) a second time.
  canMatch =
    text:
    let
      plain = if text == "Bash" then "*" else inner text;
      colon = match "(.*):\\*" plain;
      parts = filter (part: isString part && part != "") (
        split " " (if colon == null then plain else "${elemAt colon 0} *")
      );
      last = list: elemAt list (length list - 1);
      withoutLast = list: genList (elemAt list) (length list - 1);
      unmarked =
        list: seen:
        if length list > 1 && elem (last list) marks && !elem (last list) seen then
          unmarked (withoutLast list) (seen ++ [ (last list) ])
        else
          list;
      marks = [
        "&"
        "<<*"
      ];
      isAssignment = part: match "[A-Za-z_][A-Za-z0-9_]*=.*" part != null;
      command =
        list: if list != [ ] && isAssignment (head list) then command (tail list) else list;
      marked = unmarked parts [ ];
      words = command marked;
      name = head words;
    in
    if words == [ ] then
      marked != [ ]
    else
      match ".*[]\"'\\$`|&;<>(){}!?#~=].*" (dropClosing name) == null
      && match "[]-].*" name == null
      && match ".*:\\*.*" name == null
      && !elem name reserved
      && all (part: match ".*:\\*.*" part == null) (withoutLast words)
      && all (part: !elem part operators) words;
  # `]` may stand inside of a name, not at its beginning
  dropClosing = name: replaceStrings [ "]" ] [ "_" ] name;
  reserved = [
    "if"
    "then"
    "else"
    "elif"
    "fi"
    "for"
    "while"
    "until"
    "do"
    "done"
    "case"
    "esac"
    "select"
    "function"
    "coproc"
    "time"
    "in"
    "[["
    "]]"
  ];
  operators = [
    "&&"
    "||"
    "|"
    "|&"
    "&"
    ">"
    ">>"
    "<"
    "<<"
    "2>&1"
    "2>/dev/null"
  ];

  # Without a leading or trailing blank, and not empty.
  unpadded = text: match "[^[:space:]]|[^[:space:]].*[^[:space:]]" text != null;

  merge = results: {
    value = map (result: result.value) results;
    refusals = concatLists (map (result: result.refusals) results);
  };

  # check :: context -> where -> type -> value -> { value, refusals }
  # `context.root` is the directory of agent.nix. The value comes back normalised.
  check =
    context: where: type: value:
    let
      refuse = why: no where why type.allowed;
      wrong = refuse "is ${shown value}";
    in
    if isAttrs value && value ? _type then
      refuse "is made by lib.mkIf, mkForce or the like, which need nixpkgs; this is the bare platform"
    else if type.kind == "null" then
      (if value == null then ok null else check context where type.of value)
    else if type.kind == "string" then
      (
        if !isString value then
          wrong
        else if stringLength value < type.min || stringLength value > type.max then
          wrong
        else if type.pattern != null && match type.pattern value == null then
          wrong
        else
          ok value
      )
    else if type.kind == "enum" then
      (if isString value && elem value type.values then ok value else wrong)
    else if type.kind == "integer" then
      (
        if
          isInt value
          && value >= type.min
          && value <= type.max
          && value - (value / type.multipleOf) * type.multipleOf == 0
        then
          ok value
        else
          wrong
      )
    else if type.kind == "number" then
      (
        if
          isNumber value
          && value > type.above
          && (type.max == null || value <= type.max)
          && (type.below == null || value < type.below)
        then
          ok value
        else
          wrong
      )
    else if type.kind == "boolean" then
      (if isBool value then ok value else wrong)
    else if type.kind == "list" then
      (
        if !isList value then
          wrong
        else if type.max != null && length value > type.max then
          refuse "has ${toString (length value)} entries"
        else
          merge (
            genList (n: check context "${where}.${toString n}" type.of (elemAt value n)) (length value)
          )
      )
    else if type.kind == "emptyList" then
      (
        if !isList value then
          wrong
        else if value == [ ] then
          ok value
        else
          refuse type.why
      )
    else if type.kind == "bashPattern" then
      (
        if !isString value || stringLength value < 1 || stringLength value > 500 then
          wrong
        else if hasControl value || !unpadded (inner value) || !canMatch value then
          refuse "is ${shown value}, which can never match"
        else
          ok value
      )
    else if type.kind == "file" then
      file context where type value
    else if type.kind == "attrs" then
      attrs context where type value
    else if type.kind == "record" then
      (if isAttrs value then record context where type.fields value else wrong)
    else
      throw "no such kind of type: ${type.kind}";

  file =
    context: where: type: value:
    let
      root = toString context.root;
      below = match "${escape root}/(.*)" (toString value);
      text = if isPath value then (if below == null then "" else elemAt below 0) else value;
      parts = builtins.filter isString (split "/" text);
    in
    if !isString text || match type.pattern text == null then
      no where "is ${shown (if isPath value then toString value else value)}" type.allowed
    else if elem ".." parts || match "/.*" text != null then
      no where "is ${shown text}, which leads out of the flake" type.allowed
    else if context.root != null && !builtins.pathExists (context.root + "/${text}") then
      no where "names ${shown text}, which is not in the flake" type.allowed
    else
      ok text;

  attrs =
    context: where: type: value:
    let
      names = attrNames value;
      badName =
        name:
        no "${where}.${name}" "is no name that is allowed here" type.allowed;
      results = map (
        name:
        if match type.names name == null || elem name type.reserved then
          badName name
        else
          check context "${where}.${name}" type.of value.${name}
      ) names;
    in
    if !isAttrs value then
      no where "is ${shown value}" type.allowed
    else
      {
        value = listToAttrs (
          genList (n: {
            name = elemAt names n;
            inherit (elemAt results n) value;
          }) (length names)
        );
        refusals = concatLists (map (result: result.refusals) results);
      };

  # record :: context -> where -> fields -> value; a field is { type, default? } or a set of fields.
  record =
    context: where: fields: value:
    let
      isOption = field: field ? type && field.type ? kind;
      unknown = builtins.filter (name: !(fields ? ${name})) (attrNames value);
      place = name: "${where}.${name}";
      one =
        name:
        let
          field = fields.${name};
        in
        if isOption field then
          (
            if value ? ${name} then
              check context (place name) field.type value.${name}
            else if field ? default then
              ok field.default
            else
              no (place name) "is missing" field.type.allowed
          )
        else
          check context (place name) (types.record field) (value.${name} or { });
      results = listToAttrs (
        map (name: {
          inherit name;
          value = one name;
        }) (attrNames fields)
      );
    in
    {
      value = builtins.mapAttrs (_: result: result.value) results;
      refusals =
        concatLists (map (name: results.${name}.refusals) (attrNames results))
        ++ map (name: unknownOption (place name) name (attrNames fields)) unknown;
    };

  unknownOption =
    where: name: known:
    let
      near = nearest name known;
    in
    {
      inherit where;
      why = "is no option" + (if near == [ ] then "" else "; the nearest are ${concatStringsSep ", " near}");
      allowed = "";
    };

  # The three known names that are nearest, by edits; short and hostile-proof: names over 40 bytes get none.
  nearest =
    name: known:
    let
      scored = map (candidate: {
        inherit candidate;
        distance = distance name candidate;
      }) known;
      sorted = builtins.sort (a: b: a.distance < b.distance) scored;
      take = count: list: genList (elemAt list) (if length list < count then length list else count);
    in
    if stringLength name > 40 then [ ] else map (entry: entry.candidate) (take 3 sorted);

  # Levenshtein, one row at a time.
  distance =
    a: b:
    let
      char = text: n: builtins.substring n 1 text;
      min3 =
        x: y: z:
        let
          least = if x < y then x else y;
        in
        if least < z then least else z;
      first = genList (n: n) (stringLength b + 1);
      step =
        row: i:
        builtins.foldl' (
          new: j:
          new
          ++ [
            (min3 (elemAt row (j + 1) + 1) (elemAt new j + 1) (
              elemAt row j + (if char a i == char b j then 0 else 1)
            ))
          ]
        ) [ (i + 1) ] (genList (j: j) (stringLength b));
      last = builtins.foldl' step first (genList (i: i) (stringLength a));
    in
    elemAt last (stringLength b);

  escape =
    text:
    builtins.replaceStrings
      [ "\\" "." "+" "*" "?" "(" ")" "[" "]" "{" "}" "^" "$" "|" ]
      [ "\\\\" "\\." "\\+" "\\*" "\\?" "\\(" "\\)" "\\[" "\\]" "\\{" "\\}" "\\^" "\\$" "\\|" ]
      text;
in
{
  inherit types check record nearest;
}
