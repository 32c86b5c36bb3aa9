# The host module: users, the configuration file, and the units of hived, hive-gateway and hive-ui.
#
# Not in it yet: agents declared in the host's configuration, the egress proxy.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.hyperhive;

  settings = {
    inherit (cfg) platform driver;
    state_dir = cfg.stateDir;
    run_dir = cfg.runDir;
    modules = "${cfg.source}/modules";
    ui_user = cfg.ui.user;
    gateway_user = cfg.gateway.user;
    build_user = cfg.build.user;
    operator_group = cfg.operatorGroup;
    ui_port = cfg.ui.port;
    uid_range = { inherit (cfg.uidRange) start end; };
    gateway = {
      inherit (cfg.gateway) upstream label;
      credential_kind = cfg.gateway.credentialKind;
      allowed_models = cfg.gateway.allowedModels;
    }
    // lib.optionalAttrs (cfg.gateway.credentialFile != null) {
      credential_file = "/run/credentials/hive-gateway.service/credential";
    };
    harness = { inherit (cfg.harness) package venv; };
    timeouts = {
      hello_s = cfg.timeouts.helloSeconds;
      ready_s = cfg.timeouts.readySeconds;
      examine_s = cfg.timeouts.examineSeconds;
      build_s = cfg.timeouts.buildSeconds;
      resync_s = cfg.timeouts.resyncSeconds;
    };
    sessions = {
      resident_max = cfg.sessions.residentMax;
      idle_s = cfg.sessions.idleSeconds;
    };
    retention = {
      events_days = cfg.retention.eventsDays;
      transcripts_days = cfg.retention.transcriptsDays;
      build_logs_days = cfg.retention.buildLogsDays;
      stats_days = cfg.retention.statsDays;
      messages_days = cfg.retention.messagesDays;
      turns_days = cfg.retention.turnsDays;
      questions_days = cfg.retention.questionsDays;
      history_max_mib = cfg.retention.historyMaxMib;
    };
    parallel_builds = cfg.build.parallel;
    budget = {
      usd_per_day = cfg.budget.usdPerDay;
      tokens_per_turn = cfg.budget.tokensPerTurn;
      warn_at = cfg.budget.warnAt;
      prices_max_age_days = cfg.budget.pricesMaxAgeDays;
    };
  };

  # Checked by the program that will read it: a wrong configuration fails the build, not the start.
  configFile =
    pkgs.runCommand "hyperhive.json"
      {
        rendered = builtins.toJSON settings;
        passAsFile = [ "rendered" ];
      }
      ''
        PYTHONPATH=${cfg.source} ${cfg.python}/bin/python -m reconciler.cli check-config "$renderedPath"
        cp "$renderedPath" $out
      '';

  configPath = "/etc/hyperhive/config.json";

  # The same units as `hive install-units` writes on other hosts.
  units = import ./units.nix {
    inherit (cfg) driver;
    values = {
      python = "${cfg.python}/bin/python";
      source = "${cfg.source}";
      config = configPath;
      state = cfg.stateDir;
      run = cfg.runDir;
      ui_port = toString cfg.ui.port;
      ui_user = cfg.ui.user;
      gateway_user = cfg.gateway.user;
      operator_group = cfg.operatorGroup;
    };
  };
  words = text: builtins.filter (word: word != "") (lib.splitString " " text);

  agentUnit = "${cfg.python}/bin/python -S -P -m reconciler.effects.containers.unit";
  service =
    name:
    let
      found = units.sections."${name}.service";
    in
    {
      description = found.Unit.Description;
      documentation = [ found.Unit.Documentation ];
      after = words found.Unit.After;
      wants = words (found.Unit.Wants or "");
      unitConfig = removeAttrs found.Unit [
        "Description"
        "Documentation"
        "After"
        "Wants"
      ];
      serviceConfig = found.Service;
      wantedBy = [ "multi-user.target" ];
      restartTriggers = [ configFile ];
      # A switch restarts it in one go; to stop it first would stop its sockets, too, and refuse callers.
      stopIfChanged = false;
    };

  socket = name: {
    description = units.sections."${name}.socket".Unit.Description;
    socketConfig = units.sections."${name}.socket".Socket;
    wantedBy = [ "sockets.target" ];
  };
in
{
  imports = [ ./options.nix ];

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = cfg.uidRange.start < cfg.uidRange.end;
        message = "services.hyperhive.uidRange.end must lie after uidRange.start: write a greater multiple of 65536.";
      }
      {
        assertion = cfg.uidRange.start >= 65536;
        message = "services.hyperhive.uidRange.start must leave the host's own users alone: write 65536 or more.";
      }
    ];

    warnings = lib.optional (cfg.platform == "nixos") (
      "services.hyperhive.platform = \"nixos\": this version of hyperhive does not start containers of NixOS yet; "
      + "agents can be proposed and examined, not run."
    );

    environment.etc."hyperhive/config.json".source = configFile;

    services.hyperhive.harness.package = lib.mkDefault "${cfg.source}/harness";

    users = {
      groups = {
        ${cfg.operatorGroup} = { };
        ${cfg.ui.user} = { };
        ${cfg.gateway.user} = { };
        ${cfg.build.user} = { };
      };
      users =
        lib.genAttrs
          [
            cfg.ui.user
            cfg.gateway.user
            cfg.build.user
          ]
          (user: {
            isSystemUser = true;
            group = user;
          });
    };

    # A plain Nix client, as the build user: allowed to build, trusted with nothing.
    nix.settings.allowed-users = [ cfg.build.user ];

    systemd.tmpfiles.rules = [
      # The build user passes through to its trees, and lists nothing.
      "d ${cfg.stateDir} 0711 root root -"
      "d ${cfg.runDir} 0711 root root -"
      "d ${cfg.runDir}/agents 0711 root root -"
      "d ${cfg.stateDir}/gateway 0700 ${cfg.gateway.user} ${cfg.gateway.user} -"
      "d ${cfg.runDir}/gateway 0700 ${cfg.gateway.user} ${cfg.gateway.user} -"
    ];

    systemd.sockets = lib.genAttrs [
      "hived"
      "hived-ui"
    ] socket;

    systemd.services = {
      hived = service "hived" // {
        path = [
          config.nix.package
          pkgs.bubblewrap
          pkgs.coreutils
          pkgs.git
          pkgs.systemd
          pkgs.util-linux
        ];
      };

      hive-gateway = lib.recursiveUpdate (service "hive-gateway") (
        lib.optionalAttrs (cfg.gateway.credentialFile != null) {
          serviceConfig.LoadCredential = [ "credential:${cfg.gateway.credentialFile}" ];
        }
      );

      hive-ui = service "hive-ui";
    };

    # One per agent, started by hived over D-Bus. Says the same as reconciler/effects/containers/unitfile.py.
    systemd.services."hive-agent@" = lib.mkIf (cfg.driver == "systemd") {
      description = "hyperhive: the agent %i";
      before = [ "hived.service" ];
      startLimitIntervalSec = 0;
      # Agents are restarted by hived, at the end of a turn; a switch of the host leaves them alone.
      restartIfChanged = false;
      stopIfChanged = false;
      environment = {
        PYTHONPATH = "${cfg.source}";
        PYTHONPYCACHEPREFIX = "${cfg.stateDir}/containers/.compiled";
      };
      serviceConfig =
        let
          command = verb: "${agentUnit} ${verb} ${cfg.stateDir}/containers/%i";
        in
        {
          Type = "notify";
          NotifyAccess = "main";
          ExecStart = command "start";
          ExecStop = "-${command "stop"}";
          ExecStopPost = "-${command "ended"}";
          Restart = "no";
          KillMode = "mixed";
          KillSignal = "SIGTERM";
          TimeoutStartSec = 20;
          TimeoutStopSec = 15;
          Slice = "hive.slice";
          Delegate = "yes";
          OOMPolicy = "continue";
          OOMScoreAdjust = 300;
          UMask = "0077";
          StandardInput = "null";
          StandardOutput = "journal";
          StandardError = "journal";
          SyslogIdentifier = "hive-%i";
          SyslogLevelPrefix = "no";
          LogRateLimitIntervalSec = 10;
          LogRateLimitBurst = 2000;
        };
    };

    systemd.slices.hive = {
      description = units.sections."hive.slice".Unit.Description;
      sliceConfig = units.sections."hive.slice".Slice;
    };
  };
}
