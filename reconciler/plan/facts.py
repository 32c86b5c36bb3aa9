"""What a pass knows when it plans: the desired side from `state.db`, the actual side read from the world."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from reconciler.model.names import AgentName
from reconciler.model.states import Desired as DesiredState
from reconciler.model.states import ProposalState


@dataclass(frozen=True, slots=True)
class Target:
    """A generation that may run: its number and the store path of its root."""

    generation: int
    toplevel: str


@dataclass(frozen=True, slots=True)
class Deployment:
    """An approved proposal on its way. `toplevel` is known once it is built, `generation` once it is
    activating.

    `state` is approved, building or activating; `activating_at` epoch seconds; `now`: do not wait for the
    end of a turn; `building`: this hived has a build of it under way.
    """

    proposal: int
    state: ProposalState
    now: bool
    toplevel: str | None
    generation: int | None
    activating_at: float | None
    building: bool


@dataclass(frozen=True, slots=True)
class Crashes:
    """Ends that nobody asked for: how many in a row, when the last one (epoch seconds), and the last one
    that was told."""

    count: int = 0
    last_at: float | None = None
    told: str | None = None


@dataclass(frozen=True, slots=True)
class Desired:
    """What should be true of one agent.

    `held`: the operator froze it (or the hive). `purge`: destroyed, and its kept state is to go, too.
    `start_untold`: hived began a start, and has not told that it was made.
    """

    name: AgentName
    state: DesiredState
    current: Target | None
    deployment: Deployment | None = None
    restart_wanted: bool = False
    stop_intent: str | None = None
    crashes: Crashes = Crashes()
    held: bool = False
    purge: bool = False
    start_untold: bool = False


@dataclass(frozen=True, slots=True)
class Actual:
    """What is true of one agent.

    `phase`, `toplevel`, `invocation`, `started_at` are of its container; `hello`: its harness has greeted
    since that start; `busy`: a turn is live; `attached`: a person has a terminal in it; `host_restarted`: it
    ended because the host did; `stop_asked`: because somebody stopped it; `frozen`: it is suspended,
    but if `restless`, not all of it.
    `sockets`: this hived serves it; `socket_left`: a file of one lies there.

    `generation`: the one that its harness serves, as it was told at its last hello to this hived; `asked`:
    the one that it was asked to take up; `idle_since`: epoch seconds at which its last turn ended, or this
    hived began; `serves`: roots that the container can serve as it runs, besides
    its own.

    `drift`: what of its unit differs from how it was set up; `pinned`: its profile holds and points to the
    generation that should run; `tagged`: its repository has the tags of its proposals.
    `stored`: the store has the root that should run next; `rebuild`: what building it again waits for, if it
    was tried.
    """

    phase: Literal["absent", "starting", "running", "exited"] = "absent"
    toplevel: str | None = None
    invocation: str | None = None
    started_at: float | None = None
    hello: bool = False
    ready: bool = False
    busy: bool = False
    attached: bool = False
    directories: bool = False
    sockets: bool = False
    socket_left: bool = False
    host_restarted: bool = False
    stop_asked: bool = False
    frozen: bool = False
    restless: bool = False
    generation: int | None = None
    asked: int | None = None
    idle_since: float = 0.0
    serves: frozenset[str] = frozenset()
    drift: tuple[str, ...] = ()
    pinned: bool = True
    tagged: bool = True
    stored: bool = True
    rebuild: str = ""

    @property
    def alive(self) -> bool:
        """Whether processes of the container run."""
        return self.phase in {"starting", "running"}

    def can_serve(self, toplevel: str | None) -> bool:
        """Whether its container was started from that root, or from one that differs in nothing a container
        is made of."""
        return toplevel is not None and (toplevel == self.toplevel or toplevel in self.serves)


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits that planning needs, in seconds; `crashloop` is the number of crashes in a row that ends
    restarting."""

    hello_s: float = 20.0
    ready_s: float = 180.0
    crashloop: int = 6
    first_delay_s: float = 1.0
    longest_delay_s: float = 60.0

    def restart_delay_s(self, crashes: int) -> float:
        """How long to wait before the start that follows the n-th crash in a row: doubling, bounded; none
        before the first."""
        if crashes <= 0:
            return 0.0
        return min(self.longest_delay_s, self.first_delay_s * 2.0 ** (min(crashes, 32) - 1))
