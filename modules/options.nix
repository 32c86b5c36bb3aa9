# services.hyperhive.*: the host's settings, as `reconciler/config.py` knows them.
{ lib, ... }:
let
  inherit (lib) mkOption mkEnableOption types;

  # A file whose name may be in the store, but whose content may not: a secret is never a value.
  secretFile = types.addCheck types.str (
    path: lib.hasPrefix "/" path && !lib.hasPrefix builtins.storeDir path
  ) // { description = "absolute path of a file outside the Nix store"; };

  uidBoundary = types.addCheck types.ints.unsigned (uid: lib.mod uid 65536 == 0) // {
    description = "multiple of 65536";
  };

  seconds =
    default: description:
    mkOption {
      type = types.numbers.positive;
      inherit default description;
    };

  days =
    default: description:
    mkOption {
      type = types.ints.between 1 3650;
      inherit default description;
    };

  name =
    default: description:
    mkOption {
      type = types.strMatching "[a-z_][a-z0-9_-]{0,30}";
      inherit default description;
    };
in
{
  options.services.hyperhive = {
    enable = mkEnableOption "hyperhive, a hive of coding agents";

    source = mkOption {
      type = types.path;
      description = "The product's source tree. Set by the flake's module.";
    };

    python = mkOption {
      type = types.package;
      description = "A Python environment with what requirements/host.in names.";
    };

    platform = mkOption {
      type = types.enum [
        "bare"
        "nixos"
      ];
      default = "nixos";
      description = ''
        What an agent's container is: a NixOS system, or a root skeleton over the host's /usr.
        This version starts containers on the bare platform only, which needs a host with a /usr.
      '';
    };

    driver = mkOption {
      type = types.enum [
        "shim"
        "systemd"
      ];
      default = "shim";
      description = "What runs containers. This version has the shim only.";
    };

    stateDir = mkOption {
      type = types.strMatching "/.+";
      default = "/var/lib/hyperhive";
      description = "Databases, repositories and the agents' directories.";
    };

    runDir = mkOption {
      type = types.strMatching "/.+";
      default = "/run/hyperhive";
      description = "Sockets. Short, as the path of a socket holds 107 bytes.";
    };

    ui = {
      user = name "hive-ui" "The user of the web server.";
      port = mkOption {
        type = types.port;
        default = 7000;
        description = "TCP port of the web server, on 127.0.0.1.";
      };
    };

    operatorGroup = name "hive" "Members of this group are operators: they may use control.sock.";

    build = {
      user = name "hive-build" "The user that evaluates and builds.";
      parallel = mkOption {
        type = types.ints.between 1 64;
        default = 2;
        description = "Evaluations, and builds, that run at once.";
      };
    };

    uidRange = {
      start = mkOption {
        type = uidBoundary;
        default = 1048576;
        description = "First host uid that agents' ranges are taken from.";
      };
      end = mkOption {
        type = uidBoundary;
        default = 1048576 + 256 * 65536;
        description = "The uid after the last one.";
      };
    };

    gateway = {
      user = name "hive-gateway" "The user of the model gateway, which alone can read the credential.";
      upstream = mkOption {
        type = types.strMatching "(https://|http://127\\.0\\.0\\.1:|unix:/).+";
        default = "https://api.anthropic.com";
        description = "Where the gateway sends model requests.";
      };
      label = mkOption {
        type = types.str;
        default = "the Anthropic API";
        description = "What people read where the upstream is named.";
      };
      credentialFile = mkOption {
        type = types.nullOr secretFile;
        default = null;
        example = "/run/secrets/anthropic";
        description = ''
          A file with the credential that the gateway adds to requests. Handed over by systemd: it may be readable
          by root only.
        '';
      };
      credentialKind = mkOption {
        type = types.enum [
          "api-key"
          "bearer"
        ];
        default = "api-key";
        description = "What the credential is.";
      };
      allowedModels = mkOption {
        type = types.listOf types.str;
        default = [
          "haiku"
          "sonnet"
          "opus"
          "fable"
        ];
        description = "Models that agents of this host may ask for.";
      };
    };

    harness = {
      package = mkOption {
        type = types.str;
        description = "The harness's package, as bound into containers on the bare platform.";
      };
      venv = mkOption {
        type = types.str;
        default = "/opt/hyperhive/.venv-harness";
        description = "The harness's virtual environment, as bound into containers on the bare platform.";
      };
    };

    timeouts = {
      helloSeconds = seconds 20 "From the start of a container to the hello of its harness.";
      readySeconds = seconds 180 "From the start of a new generation until it takes messages.";
      examineSeconds = seconds 20 "For evaluating a proposal.";
      buildSeconds = seconds 1800 "For building an agent.";
      resyncSeconds = mkOption {
        type = types.numbers.between 0.1 3600;
        default = 10;
        description = "Between two full looks at every agent.";
      };
    };

    sessions = {
      residentMax = mkOption {
        type = types.nullOr (types.ints.between 1 10000);
        default = null;
        description = "How many agents may keep a Claude Code (about 235 MB) in memory at once; null: as many as half of the host's memory holds.";
      };
      idleSeconds = seconds 900 "An agent that idled for so long gives its Claude Code up; the next turn resumes it.";
    };

    budget = {
      usdPerDay = mkOption {
        type = types.nullOr types.numbers.positive;
        default = null;
        example = 20;
        description = "Dollars that all agents together may spend on a day of the host's local time; null: no limit.";
      };
      tokensPerTurn = mkOption {
        type = types.nullOr types.ints.positive;
        default = null;
        description = "Tokens that no turn of any agent may exceed; null: no limit but the agents' own.";
      };
      warnAt = mkOption {
        type = types.numbers.between 0.01 0.99;
        default = 0.8;
        description = "Share of a day's budget, the hive's or an agent's, at which the operator is told.";
      };
      pricesMaxAgeDays = days 90 "After how many days `hive doctor` asks whether the prices of models still hold.";
    };

    # What is in use, or was approved, is kept whatever its age; the audit chain and proposals are never pruned.
    retention = {
      eventsDays = days 90 "How long the history of events is kept.";
      transcriptsDays = days 30 "How long the lines of turns are kept.";
      buildLogsDays = days 90 "How long logs of builds are kept.";
      statsDays = days 90 "How long figures of turns are kept.";
      messagesDays = days 30 "How long messages are kept that were consumed or read.";
      turnsDays = days 30 "How long turns are kept that have ended.";
      questionsDays = days 90 "How long questions are kept that are closed.";
      historyMaxMib = mkOption {
        type = types.ints.between 64 16777216;
        default = 20480;
        description = "Transcripts go before their time when the history holds more than so many MiB.";
      };
    };
  };
}
