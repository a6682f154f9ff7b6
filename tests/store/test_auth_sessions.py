import hashlib
from collections import Counter
from collections.abc import AsyncIterator
from uuid import UUID

import psycopg
import pytest
import trio

from halo.errors import InvalidState, MitraDeactivated, TokenReused, Unauthenticated
from halo.session import Party
from halo.store.auth_sessions import (
    REFRESH_LIFETIME_MS,
    REVOKED_CHANNEL,
    AuthSessions,
    Opened,
    RefreshTokenReused,
    RevokedBecause,
)
from halo.store.mitras import Mitras
from halo.store.postgres import Postgres, open_postgres
from tests.store.rows import NOW, SetClock, add_customer, add_mitra, count, new_id


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Postgres]:
    async with open_postgres(database_url) as postgres:
        yield postgres


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def auth(db: Postgres, clock: SetClock) -> AuthSessions:
    return AuthSessions(db, clock)


@pytest.fixture
def mitras(db: Postgres, clock: SetClock) -> Mitras:
    return Mitras(db, clock)


# ---- signing in


async def test_somebody_new_becomes_a_user_with_an_id_of_halos(auth: AuthSessions, db: Postgres) -> None:
    opened = await auth.open(Party.CUSTOMER, display_name="Ayu")
    assert str(UUID(opened.user_id)) == opened.user_id
    assert opened.expires_at == NOW + REFRESH_LIFETIME_MS
    assert await count(db, "customers", "customer_id = %(id)s AND display_name = 'Ayu'", id=opened.user_id) == 1
    assert await auth.is_alive(opened.auth_session_id)


async def test_somebody_known_keeps_the_name_until_another_is_given(auth: AuthSessions, db: Postgres) -> None:
    first = await auth.open(Party.CUSTOMER, new_id(), display_name="Ayu")
    second = await auth.open(Party.CUSTOMER, first.user_id)
    assert second.auth_session_id != first.auth_session_id
    assert await count(db, "customers", "display_name = 'Ayu'") == 1
    await auth.open(Party.CUSTOMER, first.user_id, display_name="")
    assert await count(db, "customers", "display_name = ''") == 1


async def test_a_mitra_has_three_slots_until_the_backend_says_otherwise(auth: AuthSessions, mitras: Mitras) -> None:
    mitra_id = (await auth.open(Party.MITRA)).user_id
    assert (await mitras.load_status(mitra_id)).max_sessions == 3
    await auth.open(Party.MITRA, mitra_id, max_sessions=5)
    await auth.open(Party.MITRA, mitra_id)
    assert (await mitras.load_status(mitra_id)).max_sessions == 5


@pytest.mark.parametrize("party", list(Party))
async def test_an_id_is_a_customers_or_a_mitras_and_never_both(auth: AuthSessions, db: Postgres, party: Party) -> None:
    other = Party.MITRA if party is Party.CUSTOMER else Party.CUSTOMER
    opened = await auth.open(party)
    with pytest.raises(InvalidState, match=party.value):
        await auth.open(other, opened.user_id)
    assert await count(db, "customers") + await count(db, "mitras") == 1
    assert await count(db, "auth_sessions") == 1


async def test_an_id_first_seen_as_both_at_once_becomes_one_of_them(auth: AuthSessions, db: Postgres) -> None:
    for _ in range(10):
        user_id = new_id()
        refused = 0

        async def sign_in(party: Party, user_id: str = user_id) -> None:
            nonlocal refused
            try:
                await auth.open(party, user_id)
            except InvalidState:
                refused += 1

        async with trio.open_nursery() as nursery:
            for party in Party:
                nursery.start_soon(sign_in, party)
        customers = await count(db, "customers", "customer_id = %(id)s", id=user_id)
        assert customers + await count(db, "mitras", "mitra_id = %(id)s", id=user_id) == 1
        assert refused == 1


async def test_a_deactivated_mitra_cannot_sign_in(auth: AuthSessions, mitras: Mitras, db: Postgres) -> None:
    mitra_id = await add_mitra(db)
    await mitras.deactivate(mitra_id, "op")
    with pytest.raises(MitraDeactivated):
        await auth.open(Party.MITRA, mitra_id)
    assert await count(db, "auth_sessions") == 0
    await mitras.activate(mitra_id, "op")
    assert (await auth.open(Party.MITRA, mitra_id)).user_id == mitra_id


async def test_only_hashes_of_refresh_tokens_are_stored_and_none_is_shown(auth: AuthSessions, db: Postgres) -> None:
    opened = await auth.open(Party.CUSTOMER)
    rotated = await auth.rotate(opened.refresh_token)
    assert len(opened.refresh_token) >= 43  # 256 bits in base64
    assert opened.refresh_token not in repr(opened)
    [family] = await db.fetch_all("SELECT refresh_token_hash FROM auth_sessions")
    [retired] = await db.fetch_all("SELECT refresh_token_hash FROM retired_refresh_tokens")
    assert family.refresh_token_hash == hashlib.sha256(rotated.refresh_token.encode()).digest()
    assert retired.refresh_token_hash == hashlib.sha256(opened.refresh_token.encode()).digest()


async def test_opening_under_a_derived_id_again_is_the_same_family_with_a_new_token(
    auth: AuthSessions, db: Postgres
) -> None:
    user_id, auth_session_id = new_id(), new_id()
    lost = await auth.open(Party.CUSTOMER, user_id, auth_session_id=auth_session_id)
    again = await auth.open(Party.CUSTOMER, user_id, auth_session_id=auth_session_id)
    assert await count(db, "auth_sessions") == 1
    assert (await auth.rotate(again.refresh_token)).auth_session_id == auth_session_id
    with pytest.raises(Unauthenticated):
        await auth.rotate(lost.refresh_token)


async def test_a_derived_id_opens_neither_anothers_nor_a_revoked_family(auth: AuthSessions) -> None:
    user_id, auth_session_id = new_id(), new_id()
    opened = await auth.open(Party.CUSTOMER, user_id, auth_session_id=auth_session_id)
    with pytest.raises(InvalidState):
        await auth.open(Party.CUSTOMER, new_id(), auth_session_id=auth_session_id)
    assert (await auth.rotate(opened.refresh_token)).user_id == user_id
    await auth.revoke(auth_session_id, RevokedBecause.SIGNED_OUT)
    with pytest.raises(InvalidState):
        await auth.open(Party.CUSTOMER, user_id, auth_session_id=auth_session_id)


# ---- rotation


@pytest.mark.parametrize("party", list(Party))
async def test_a_refresh_token_is_traded_for_the_next_of_its_family(
    auth: AuthSessions, clock: SetClock, party: Party
) -> None:
    opened = await auth.open(party)
    clock.moment += REFRESH_LIFETIME_MS - 1
    rotated = await auth.rotate(opened.refresh_token)
    assert (rotated.auth_session_id, rotated.user_id, rotated.user_type) == (
        opened.auth_session_id,
        opened.user_id,
        party,
    )
    assert rotated.refresh_token != opened.refresh_token
    assert rotated.expires_at == clock.moment + REFRESH_LIFETIME_MS


async def test_a_refresh_token_that_was_not_used_for_a_month_is_worth_nothing(
    auth: AuthSessions, clock: SetClock
) -> None:
    opened = await auth.open(Party.CUSTOMER)
    clock.moment += REFRESH_LIFETIME_MS
    assert not await auth.is_alive(opened.auth_session_id)
    with pytest.raises(Unauthenticated):
        await auth.rotate(opened.refresh_token)


@pytest.mark.parametrize("token", ["", "x", "\x00", "\ud800", "é" * 5000])
async def test_what_was_never_a_token_is_unauthenticated(auth: AuthSessions, token: str) -> None:
    await auth.open(Party.CUSTOMER)
    with pytest.raises(Unauthenticated):
        await auth.rotate(token)


async def test_a_token_used_twice_revokes_its_family_and_no_other(auth: AuthSessions) -> None:
    stolen = await auth.open(Party.CUSTOMER)
    elsewhere = await auth.open(Party.CUSTOMER, stolen.user_id)
    successor = await auth.rotate(stolen.refresh_token)
    with pytest.raises(TokenReused) as refused:
        await auth.rotate(stolen.refresh_token)
    assert isinstance(refused.value, RefreshTokenReused)
    assert refused.value.auth_session_id == stolen.auth_session_id
    assert not await auth.is_alive(stolen.auth_session_id)
    with pytest.raises(Unauthenticated):
        await auth.rotate(successor.refresh_token)
    assert (await auth.rotate(elsewhere.refresh_token)).user_id == stolen.user_id


async def test_every_token_that_a_family_ever_had_is_remembered(auth: AuthSessions, clock: SetClock) -> None:
    first = current = await auth.open(Party.CUSTOMER)
    for _ in range(5):
        clock.moment += REFRESH_LIFETIME_MS // 2
        current = await auth.rotate(current.refresh_token)
    with pytest.raises(TokenReused):
        await auth.rotate(first.refresh_token)
    assert not await auth.is_alive(current.auth_session_id)


async def test_of_twenty_uses_of_one_token_at_once_one_wins_and_the_family_is_revoked(
    auth: AuthSessions, db: Postgres
) -> None:
    opened = await auth.open(Party.CUSTOMER)
    outcomes: Counter[type] = Counter()
    winners: list[Opened] = []

    async def rotate() -> None:
        try:
            winners.append(await auth.rotate(opened.refresh_token))
        except TokenReused as refused:
            outcomes[type(refused)] += 1

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(rotate)
    assert len(winners) == 1
    assert outcomes == {RefreshTokenReused: 19}
    with pytest.raises(Unauthenticated):
        await auth.rotate(winners[0].refresh_token)
    assert await count(db, "auth_sessions", "revoked_because = 'token_reused'") == 1


async def test_a_deactivated_mitra_is_told_so_at_refresh_even_with_an_old_token(
    auth: AuthSessions, mitras: Mitras
) -> None:
    opened = await auth.open(Party.MITRA)
    current = await auth.rotate(opened.refresh_token)
    await mitras.deactivate(opened.user_id, "op")
    for token in (current.refresh_token, opened.refresh_token):
        with pytest.raises(MitraDeactivated):
            await auth.rotate(token)


async def test_an_old_family_stays_revoked_when_its_mitra_is_activated_again(
    auth: AuthSessions, mitras: Mitras
) -> None:
    opened = await auth.open(Party.MITRA)
    await mitras.deactivate(opened.user_id, "op")
    await mitras.activate(opened.user_id, "op")
    with pytest.raises(Unauthenticated):
        await auth.rotate(opened.refresh_token)


async def test_no_family_outlives_a_deactivation_that_it_meets(
    auth: AuthSessions, mitras: Mitras, db: Postgres
) -> None:
    """Sign-ins and refreshes in the same moment as the deactivation are refused or revoked, never overlooked."""
    for _ in range(8):
        first = await auth.open(Party.MITRA)
        mitra_id, token = first.user_id, first.refresh_token
        revoked: list[str] = []

        async def sign_in(mitra_id: str = mitra_id) -> None:
            try:
                await auth.open(Party.MITRA, mitra_id)
            except MitraDeactivated:
                return

        async def refresh(token: str = token) -> None:
            try:
                await auth.rotate(token)
            except (MitraDeactivated, Unauthenticated):
                return

        async def deactivate(mitra_id: str = mitra_id, revoked: list[str] = revoked) -> None:
            revoked.extend((await mitras.deactivate(mitra_id, "op")).auth_session_ids)

        async with trio.open_nursery() as nursery:
            for task in (sign_in, refresh, deactivate, sign_in, sign_in):
                nursery.start_soon(task)
        families = await db.fetch_all(
            "SELECT auth_session_id, revoked_at FROM auth_sessions WHERE user_id = %(id)s", {"id": mitra_id}
        )
        assert all(family.revoked_at is not None for family in families)
        assert {family.auth_session_id for family in families} == set(revoked)


# ---- revocation


async def test_a_revoked_family_is_dead_and_revoking_it_again_says_so(auth: AuthSessions) -> None:
    opened = await auth.open(Party.CUSTOMER)
    assert await auth.revoke(opened.auth_session_id, RevokedBecause.SIGNED_OUT)
    assert not await auth.revoke(opened.auth_session_id, RevokedBecause.OPERATOR)
    assert not await auth.revoke(new_id(), RevokedBecause.OPERATOR)
    assert not await auth.is_alive(opened.auth_session_id)
    with pytest.raises(Unauthenticated):
        await auth.rotate(opened.refresh_token)


async def test_revoking_a_user_ends_every_family_of_theirs_and_nobody_elses(auth: AuthSessions) -> None:
    first = await auth.open(Party.CUSTOMER)
    second = await auth.open(Party.CUSTOMER, first.user_id)
    gone = await auth.open(Party.CUSTOMER, first.user_id)
    other = await auth.open(Party.CUSTOMER)
    await auth.revoke(gone.auth_session_id, RevokedBecause.SIGNED_OUT)
    revoked = await auth.revoke_user(first.user_id, RevokedBecause.OPERATOR)
    assert set(revoked) == {first.auth_session_id, second.auth_session_id}
    assert await auth.is_alive(other.auth_session_id)


async def test_a_node_that_starts_learns_of_the_revocations_it_missed(auth: AuthSessions, clock: SetClock) -> None:
    old, mitra, recent = [await auth.open(party) for party in (Party.CUSTOMER, Party.MITRA, Party.CUSTOMER)]
    await auth.revoke(old.auth_session_id, RevokedBecause.SIGNED_OUT)
    clock.moment += 60_000
    await auth.revoke_user(mitra.user_id, RevokedBecause.DEACTIVATED)
    clock.moment += 1
    await auth.revoke(recent.auth_session_id, RevokedBecause.OPERATOR)
    missed = await auth.list_recently_revoked(NOW + 60_000)
    assert [(one.auth_session_id, one.user_id, one.revoked_at, one.because) for one in missed] == [
        (mitra.auth_session_id, mitra.user_id, NOW + 60_000, RevokedBecause.DEACTIVATED),
        (recent.auth_session_id, recent.user_id, NOW + 60_001, RevokedBecause.OPERATOR),
    ]
    assert [one.because.refusal for one in missed] == [MitraDeactivated, Unauthenticated]


async def test_every_node_is_told_of_each_revocation(auth: AuthSessions, mitras: Mitras, database_url: str) -> None:
    out, mitra, stolen = [await auth.open(party) for party in (Party.CUSTOMER, Party.MITRA, Party.CUSTOMER)]
    with psycopg.connect(database_url, autocommit=True) as node:
        node.execute(f"LISTEN {REVOKED_CHANNEL}")
        await auth.revoke(out.auth_session_id, RevokedBecause.SIGNED_OUT)
        await auth.revoke(out.auth_session_id, RevokedBecause.SIGNED_OUT)
        await mitras.deactivate(mitra.user_id, "op")
        await auth.rotate(stolen.refresh_token)
        with pytest.raises(TokenReused):
            await auth.rotate(stolen.refresh_token)
        heard = [tuple(notice.payload.split()) for notice in node.notifies(timeout=5, stop_after=3)]
    assert heard == [
        (out.auth_session_id, "signed_out"),
        (mitra.auth_session_id, "deactivated"),
        (stolen.auth_session_id, "token_reused"),
    ]


async def test_families_that_ended_long_ago_are_forgotten_with_their_tokens(
    auth: AuthSessions, db: Postgres, clock: SetClock
) -> None:
    customer = await add_customer(db)
    rotated = await auth.rotate((await auth.open(Party.CUSTOMER, customer)).refresh_token)
    await auth.revoke(rotated.auth_session_id, RevokedBecause.SIGNED_OUT)
    clock.moment += 1000
    living = await auth.open(Party.CUSTOMER, customer)
    assert await auth.delete_ended(clock.moment) == 1
    assert await count(db, "retired_refresh_tokens") == 0
    assert await auth.is_alive(living.auth_session_id)
    assert await auth.delete_ended(clock.moment + REFRESH_LIFETIME_MS + 1) == 1
