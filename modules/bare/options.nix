# The table of hyperhive.* options: type, default, what it is. Equal to `reconciler/model/spec.py` by a test.
{ types }:
let
  inherit (types)
    attrsOf
    bashPattern
    boolean
    emptyList
    enum
    file
    integer
    listOf
    nullOr
    number
    record
    string
    ;

  model = string {
    pattern = "[a-z][a-z0-9.:-]{0,63}(\\[1m])?";
    allowed = "an alias (haiku, sonnet, opus, fable) or the id of a model";
  };
  size = string {
    pattern = "[1-9][0-9]{0,9}[KMGT]";
    allowed = "a size such as \"4G\" (K, M, G or T)";
  };
  text = string {
    max = 1048576;
    allowed = "a string";
  };
  patterns = listOf {
    of = bashPattern;
    max = 200;
  };
in
{
  model = {
    type = model;
    default = "haiku";
    description = "The model that the agent runs on, until the operator overrides it.";
  };
  models = {
    type = listOf { of = model; };
    default = [ ];
    description = "Models that an override may choose; the empty list means any that the host allows.";
  };
  role = {
    type = enum [
      "agent"
      "manager"
    ];
    default = "agent";
    description = "A manager may propose for all agents, and start and stop them. At most one in a hive.";
  };
  bash = {
    allow = {
      type = patterns;
      default = [ ];
      example = [
        "git *"
        "rg *"
      ];
      description = "Shell commands that may run, as Claude Code patterns; the empty list means no shell.";
    };
    deny = {
      type = patterns;
      default = [ ];
      description = "Shell commands that may not run although a pattern allows them.";
    };
  };
  tools = {
    allow = {
      type = listOf {
        of = enum [
          "Read"
          "Edit"
          "Write"
          "Glob"
          "Grep"
          "NotebookEdit"
        ];
      };
      default = [
        "Read"
        "Edit"
        "Write"
      ];
      description = "Built-in tools that the model is offered.";
    };
    server = {
      type = listOf {
        of = string {
          pattern = "[A-Za-z0-9_.-]{1,80}";
          allowed = "the name of a server-side tool or beta";
        };
      };
      default = [ ];
      description = "Server-side tools and betas that the model gateway lets pass.";
    };
  };
  uidMap.base = {
    type = nullOr (integer {
      min = 65536;
      max = 4294836224;
      multipleOf = 65536;
    });
    default = null;
    description = "First host uid of the agent's range; null: the host assigns one when the agent is created. Never changes.";
  };
  network.allow = {
    type = emptyList "is not supported yet: agents have no network but the model";
    default = [ ];
    description = "Host names that the egress proxy lets through. Not supported yet.";
  };
  send.allow = {
    type = listOf {
      of = string {
        pattern = "[a-z][a-z0-9-]{0,30}|\\*";
        allowed = "the name of an agent, \"manager\", \"operator\" or \"*\"";
      };
    };
    default = [
      "manager"
      "operator"
    ];
    description = "Whom the agent may send messages to.";
  };
  budget = {
    usdPerDay = {
      type = nullOr (number {
        above = 0;
        max = 100000;
      });
      default = null;
      description = "What the agent may spend in a day of the host's local time, in dollars.";
    };
    tokensPerTurn = {
      type = nullOr (integer {
        min = 1;
        max = 1000000000;
      });
      default = null;
      description = "Tokens that one turn may take: input, output and cache writes.";
    };
  };
  mcpServers = {
    type = attrsOf {
      names = "[a-z](_?[a-z0-9-]){0,30}";
      reserved = [ "hyperhive" ];
      allowed = "servers by name (a-z, 0-9, - and single _; not \"hyperhive\", which is the hive's own)";
      of = record {
        command = {
          type = string {
            min = 1;
            allowed = "a command, 1 to 4096 characters";
          };
        };
        args = {
          type = listOf { of = text; };
          default = [ ];
        };
        env = {
          type = attrsOf {
            of = text;
            allowed = "a set of strings";
          };
          default = { };
        };
        allow = {
          type = listOf {
            of = string {
              pattern = "[A-Za-z0-9_-]{1,64}";
              allowed = "the name of a tool";
            };
          };
          default = [ ];
        };
      };
    };
    default = { };
    description = "Further MCP servers inside the container; `allow` names their tools one by one.";
  };
  limits = {
    memoryMax = {
      type = size;
      default = "4G";
      description = "Memory of the container.";
    };
    cpuQuota = {
      type = string {
        pattern = "[1-9][0-9]{0,4}%";
        allowed = "percent of one core, such as \"200%\"";
      };
      default = "200%";
      description = "Processor time of the container, in percent of one core.";
    };
    tasksMax = {
      type = integer {
        min = 16;
        max = 65536;
      };
      default = 512;
      description = "Processes and threads of the container.";
    };
    diskMax = {
      type = size;
      default = "10G";
      description = "Size of what the agent may write to disk.";
    };
  };
  prompt = {
    type = nullOr file;
    default = null;
    example = "prompt.md";
    description = "A file of the agent's flake whose text is added to its system prompt.";
  };
  compact.atTokens = {
    type = number {
      above = 0.1;
      below = 1;
    };
    default = 0.75;
    description = "Share of the context window at which the session is compacted.";
  };
  notes.maxBytes = {
    type = integer {
      min = 1024;
      max = 1048576;
    };
    default = 32768;
    description = "Size at which /state/notes.md is rewritten, in bytes.";
  };
  nix.enable = {
    type = boolean;
    default = false;
    description = "Whether the container may speak to a Nix daemon, as an untrusted user.";
  };
}
