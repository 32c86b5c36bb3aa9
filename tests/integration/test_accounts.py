"""People: links that work once, sessions that end, an audit chain that shows every change."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from reconciler.control import accounts
from reconciler.control import models as api
from reconciler.control.accounts import AccountService
from reconciler.errors import HiveError, OperatorError, PermanentError, TemporaryError
from reconciler.model.states import UserRole
from reconciler.services import Accounts, Actor
from tests.support.brokers import VIEWER, World

pytestmark = pytest.mark.asyncio
ROOT = Actor("unix:root", UserRole.OPERATOR)


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = await World.open(tmp_path)
    yield world
    await world.close()


@pytest.fixture
def people(world: World) -> AccountService:
    service = AccountService(world.store, world.clock, ui_port=7000)
    checked: Accounts = service
    assert checked is service
    return service


async def link(people: AccountService, user: str = "alice", role: UserRole = UserRole.OPERATOR) -> str:
    return (await people.login_link(ROOT, api.NewLoginLink(user=user, role=role))).token


async def log_in(people: AccountService, user: str = "alice", role: UserRole = UserRole.OPERATOR) -> str:
    session = await people.login(await link(people, user, role))
    assert session.session is not None
    return session.session


async def refused(work: object) -> HiveError:
    with pytest.raises(HiveError) as caught:
        await work  # type: ignore[misc]
    return caught.value


# ------------------------------------------------------------------------------------------------------ login
async def test_a_link_logs_in_once_and_only_once(people: AccountService) -> None:
    made = await people.login_link(ROOT, api.NewLoginLink(user="alice"))
    assert made.url == f"http://localhost:7000/login/{made.token}"
    assert made.expires_in_s == 600
    session = await people.login(made.token)
    assert (session.user, session.role) == ("alice", UserRole.OPERATOR)
    error = await refused(people.login(made.token))
    assert error.code == "unauthenticated"


async def test_of_many_that_use_a_link_at_once_one_gets_in(people: AccountService) -> None:
    token = await link(people)
    found = await asyncio.gather(*(people.login(token) for _ in range(8)), return_exceptions=True)
    assert sum(isinstance(one, api.Session) for one in found) == 1
    assert len((await people.sessions()).items) == 1


async def test_a_link_is_good_for_ten_minutes(world: World, people: AccountService) -> None:
    early, late = await link(people), await link(people)
    world.clock.advance(599)
    await people.login(early)
    world.clock.advance(1)
    assert (await refused(people.login(late))).code == "unauthenticated"


async def test_no_secret_is_stored(world: World, people: AccountService) -> None:
    token = await link(people)
    session = await people.login(token)
    other = await link(people)
    assert session.session is not None
    await world.store.close()
    stored = b"".join(path.read_bytes() for path in world.directory.iterdir())
    for secret in (token, other, session.session):
        assert secret.encode() not in stored
    assert hashlib.sha256(other.encode()).hexdigest().encode() in stored


async def test_wrong_links_are_slowed_down_and_a_right_one_is_not(
    world: World, people: AccountService
) -> None:
    token = await link(people)
    for number in range(accounts.FAILURES_MAX):
        assert (await refused(people.login(f"guess-{number}"))).code == "unauthenticated"
    error = await refused(people.login("guess"))
    assert isinstance(error, TemporaryError)
    assert error.code == "rate-limited"
    await people.login(token)
    world.clock.advance(accounts.FAILURES_S)
    assert (await refused(people.login("guess"))).code == "unauthenticated"


@pytest.mark.parametrize("token", ["", "x" * 200, "\udcff", "' OR 1=1 --", "\x00"])
async def test_odd_tokens_are_wrong_tokens(people: AccountService, token: str) -> None:
    await link(people)
    assert (await refused(people.login(token))).code == "unauthenticated"


async def test_links_are_made_by_operators_and_change_nobodys_role(people: AccountService) -> None:
    assert (await refused(people.login_link(VIEWER, api.NewLoginLink()))).code == "forbidden"
    await link(people, "victor", UserRole.VIEWER)
    error = await refused(people.login_link(ROOT, api.NewLoginLink(user="victor")))
    assert error.code == "conflict"
    assert "victor is a viewer" in error.message
    actor, _ = await people.session(await log_in(people, "victor", UserRole.VIEWER))
    assert actor == Actor("viewer:victor", UserRole.VIEWER)
    users = await people.users()
    assert [(user.name, user.role) for user in users.items] == [("victor", "viewer")]


async def test_unused_links_are_bounded(
    world: World, people: AccountService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounts, "TOKENS_MAX", 2)
    await link(people)
    await link(people)
    assert (await refused(people.login_link(ROOT, api.NewLoginLink(user="alice")))).code == "conflict"
    world.clock.advance(601)
    await link(people)
    assert await world.scalar("SELECT COUNT(*) FROM login_tokens") == 1, "old ones are swept away"


# --------------------------------------------------------------------------------------------------- sessions
async def test_a_session_knows_its_holder_and_keeps_its_secret(world: World, people: AccountService) -> None:
    secret = await log_in(people)
    actor, session = await people.session(secret)
    assert actor == Actor("operator:alice", UserRole.OPERATOR)
    assert session.session is None
    assert len(session.csrf) >= 32
    assert session.stepped_up_until == "2023-11-14T22:18:20.000Z"
    assert session.expires_at == "2023-11-21T22:13:20.000Z"
    other = await log_in(people)
    assert (await people.session(other))[1].csrf != session.csrf


async def test_a_session_ends_after_twelve_idle_hours(world: World, people: AccountService) -> None:
    secret = await log_in(people)
    for _ in range(3):
        world.clock.advance(accounts.IDLE_S - 1)
        await people.session(secret)
    world.clock.advance(accounts.IDLE_S)
    assert (await refused(people.session(secret))).code == "unauthenticated"
    assert (await people.sessions()).items == []


async def test_a_session_ends_after_seven_days_whatever_happens(world: World, people: AccountService) -> None:
    secret = await log_in(people)
    for _ in range(7 * 24 - 1):
        world.clock.advance(3600)
        await people.session(secret)
    world.clock.advance(3600)
    assert (await refused(people.session(secret))).code == "unauthenticated"


async def test_looking_often_does_not_write_often(world: World, people: AccountService) -> None:
    secret = await log_in(people)
    before = await world.scalar("SELECT last_seen_at FROM sessions")
    for _ in range(10):
        world.clock.advance(5)
        await people.session(secret)
    assert await world.scalar("SELECT last_seen_at FROM sessions") == before
    world.clock.advance(10)
    await people.session(secret)
    assert await world.scalar("SELECT last_seen_at FROM sessions") > before


async def test_logging_out_ends_this_session_only(people: AccountService) -> None:
    first, second = await log_in(people), await log_in(people)
    await people.logout(first)
    await people.logout(first)
    await people.logout("nonsense")
    assert (await refused(people.session(first))).code == "unauthenticated"
    await people.session(second)
    actions = [row.action for row in (await people.audit(before=None, limit=100)).items]
    assert actions.count("logout") == 1


async def test_a_session_is_another_secret_than_the_link(people: AccountService) -> None:
    token = await link(people)
    await people.login(token)
    assert (await refused(people.session(token))).code == "unauthenticated"


# ------------------------------------------------------------------------------------------------------ audit
async def decide(world: World, *names: str) -> None:
    for name in names:
        async with world.store.state.transaction() as tx:
            await tx.audit("operator:alice", "proposal.approve", name, note=f"für {name} \u2028")


async def test_the_chain_holds_and_its_head_is_what_the_list_shows(
    world: World, people: AccountService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounts, "PAGE_MAX", 3)
    assert await people.verify_chain() == ""
    await decide(world, *"abcdefgh")
    listed = await people.audit(before=None, limit=100)
    assert await people.verify_chain() == listed.head == listed.items[0].hash
    assert [row.target for row in listed.items] == ["h", "g", "f"]
    rest = await people.audit(before=listed.next, limit=2)
    assert [row.target for row in rest.items] == ["e", "d"]
    assert rest.head == listed.head


@pytest.mark.parametrize(
    "tamper",
    [
        "UPDATE audit SET actor = 'operator:mallory' WHERE id = 2",
        "UPDATE audit SET action = 'proposal.deny' WHERE id = 2",
        "UPDATE audit SET target = 'x' WHERE id = 2",
        'UPDATE audit SET data = \'{"note":""}\' WHERE id = 2',
        "UPDATE audit SET at = at + 1 WHERE id = 2",
        "UPDATE audit SET hash = (SELECT hash FROM audit WHERE id = 1) WHERE id = 2",
        "DELETE FROM audit WHERE id = 2",
        "UPDATE audit SET id = 9 WHERE id = 2",
    ],
    ids=["actor", "action", "target", "data", "instant", "hash", "removed", "moved"],
)
async def test_any_change_of_a_row_breaks_the_chain(
    world: World, people: AccountService, tamper: str
) -> None:
    await decide(world, "a", "b", "c")
    async with world.store.state.transaction() as tx:
        await tx.run(tamper)
    with pytest.raises(PermanentError, match="broken at row") as caught:
        await people.verify_chain()
    assert caught.value.code == "audit-broken"


async def test_a_decision_and_its_audit_row_stand_or_fall_together(
    world: World, people: AccountService
) -> None:
    async def fail() -> None:
        async with world.store.state.transaction() as tx:
            await tx.audit("operator:alice", "proposal.approve", "a")
            raise OperatorError("changed meanwhile", code="conflict")

    await decide(world, "a")
    with pytest.raises(OperatorError):
        await fail()
    await decide(world, "b")
    assert [row.target for row in (await people.audit(before=None, limit=9)).items] == ["b", "a"]
    assert await people.verify_chain()
