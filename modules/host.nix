# The host module: users, the configuration file, and the three units hived, hive-gateway and hive-ui.
#
# First version. Not in it yet: agents declared in the host's configuration, the egress proxy.
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

  environment = {
    HIVE_CONFIG = "/etc/hyperhive/config.json";
    PYTHONPATH = "${cfg.source}";
    PYTHONSAFEPATH = "1";
    PYTHONDONTWRITEBYTECODE = "1";
    PYTHONUNBUFFERED = "1";
  };

  # The strictest set; a unit that needs more says which and why.
  hardening = {
    CapabilityBoundingSet = "";
    LockPersonality = true;
    MemoryDenyWriteExecute = true;
    NoNewPrivileges = true;
    PrivateDevices = true;
    PrivateTmp = true;
    ProcSubset = "pid";
    ProtectClock = true;
    ProtectControlGroups = true;
    ProtectHome = true;
    ProtectHostname = true;
    ProtectKernelLogs = true;
    ProtectKernelModules = true;
    ProtectKernelTunables = true;
    ProtectProc = "invisible";
    ProtectSystem = "strict";
    RestrictNamespaces = true;
    RestrictRealtime = true;
    RestrictSUIDSGID = true;
    SystemCallArchitectures = "native";
    SystemCallFilter = [
      "@system-service"
      "~@privileged @resources"
    ];
    UMask = "0077";
  };

  python = module: "${cfg.python}/bin/python -m ${module}";
  agentUnit = "${cfg.python}/bin/python -S -P -m reconciler.effects.containers.unit";
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
      "d ${cfg.runDir} 0755 root root -"
    ];

    systemd.services.hived = {
      description = "hyperhive: the reconciler";
      wantedBy = [ "multi-user.target" ];
      after = [ "nix-daemon.socket" ];
      environment = environment // {
        NIX_REMOTE = "daemon";
      };
      path = [
        config.nix.package
        pkgs.bubblewrap
        pkgs.coreutils
        pkgs.git
        pkgs.systemd
        pkgs.util-linux
      ];
      restartTriggers = [ configFile ];
      serviceConfig = {
        ExecStart = python "reconciler";
        Restart = "on-failure";
        RestartSec = "1s";
        # Containers outlive hived: their shims are in this unit's group, and only its main process is stopped.
        KillMode = "process";
        Delegate = true;
        # Everything here is inherited by containers, so only what they do not need either can be closed.
        LockPersonality = true;
        ProtectClock = true;
        ProtectHome = true;
        ProtectKernelLogs = true;
        ProtectKernelModules = true;
        RestrictRealtime = true;
        SystemCallArchitectures = "native";
        UMask = "0077";
      };
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

    systemd.services.hive-gateway = {
      description = "hyperhive: the model gateway";
      wantedBy = [ "multi-user.target" ];
      after = [ "network-online.target" ];
      wants = [ "network-online.target" ];
      inherit environment;
      restartTriggers = [ configFile ];
      serviceConfig = hardening // {
        ExecStart = python "reconciler.gateway";
        User = cfg.gateway.user;
        Group = cfg.gateway.user;
        Restart = "always";
        RestartSec = "1s";
        StateDirectory = "hyperhive-gateway";
        RestrictAddressFamilies = [
          "AF_UNIX"
          "AF_INET"
          "AF_INET6"
        ];
        LoadCredential = lib.optional (
          cfg.gateway.credentialFile != null
        ) "credential:${cfg.gateway.credentialFile}";
      };
    };

    systemd.services.hive-ui = {
      description = "hyperhive: the web server";
      wantedBy = [ "multi-user.target" ];
      inherit environment;
      restartTriggers = [ configFile ];
      serviceConfig = hardening // {
        ExecStart = "${python "ui"} --port ${toString cfg.ui.port}";
        User = cfg.ui.user;
        Group = cfg.ui.user;
        Restart = "always";
        RestartSec = "1s";
        RestrictAddressFamilies = [
          "AF_UNIX"
          "AF_INET"
        ];
        # Browsers on this machine, and nobody else.
        IPAddressAllow = "localhost";
        IPAddressDeny = "any";
      };
    };
  };
}
