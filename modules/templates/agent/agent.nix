# What this agent is. A change takes effect when it is committed, proposed, and approved by the operator.
# Every option: docs/agent-nix.md of hyperhive. Plain values only: no lib, no pkgs, no imports.
{ ... }:
{
  hyperhive = {
    # The model: haiku, sonnet, opus, fable, or the id of one.
    model = "haiku";

    # agent, or manager: may propose for all agents. At most one manager in a hive.
    role = "agent";

    # Shell commands that may run, as Claude Code patterns. The empty list means no shell.
    bash.allow = [ ];

    # Whom this agent may send messages to: names of agents, "manager", "operator", or "*".
    send.allow = [ "manager" "operator" ];

    # A file of this repository whose text is added to the system prompt.
    prompt = "prompt.md";
  };
}
