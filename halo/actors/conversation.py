"""The messages of one session: each gets the next `seq`, becomes durable with many others, and only then is acknowledged and heard.

The owner numbers, so `seq` is dense (C2); a client id that was seen before is looked up and acknowledged again with its first `seq`
(C3). Ids belong to a person, so a row names which mitra of the session spoke. When the outcome of an append is unknown nobody is
acknowledged, and the next thing that happens is `catch_up`, which reads what is stored. Must never write for a session that it does
not own: the journal checks the epoch. Read next:
`halo/store/journal.py`.
"""

from time import perf_counter
from typing import NamedTuple

from halo import protocol
from halo.actors.audience import Audience
from halo.actors.commands import Ear, Said
from halo.actors.known_ids import KnownIds
from halo.actors.ports import MessageRow, Ports
from halo.clock import Moment, rfc3339
from halo.errors import IdReused, SessionNotActive, StepOvertaken, StoreUnavailable
from halo.rules import refuse_message
from halo.session import CUSTOMER_SENDER, Party, Session, sender_of

IDS_PAGE = 10_000
"""Ids read at a time after a restart: some 400 KB, a few milliseconds."""
TAIL_PAGE = 500


class Row(NamedTuple):
    """A message on its way into the journal."""

    seq: int
    sender: str
    """`customer`, or as `Session.mitra_sender` has it: each mitra of a session counts her own messages."""
    id: str
    body: str
    at: Moment


class TailUnknown(Exception):
    """An append has failed: what is stored is known only after `catch_up`."""


class Conversation:
    """What was said, as far as it has a `seq`.

    Error handling: `store` tells every speaker exactly once, also when it raises.
    """

    __slots__ = ("_audience", "_known", "_ports", "_session_id", "last_seq")

    def __init__(self, session_id: str, last_seq: int, audience: Audience, ports: Ports) -> None:
        self.last_seq = last_seq
        self._session_id = session_id
        self._audience = audience
        self._ports = ports
        self._known: KnownIds | None = None if last_seq else KnownIds()

    async def store(self, said: list[Said], session: Session) -> None:
        """Number, append, acknowledge, deliver; whoever is no participant any more is refused, whatever it says.

        Raises:
            TailUnknown: the append failed; whoever spoke was told to try again.
        """
        said = _of_participants(said, session)
        try:
            fresh = await self._number(said, session)
        except StoreUnavailable as away:  # nothing was written: the ids could not be looked up
            for item in said:
                item.not_stored(away)
            return
        if not fresh:
            return
        try:
            await self._ports.log.append(self._session_id, session.epoch, [row for row, _ in fresh])
        except (StoreUnavailable, StepOvertaken) as unknown:
            for _, items in fresh:
                for item in items:
                    item.not_stored(StoreUnavailable())
            raise TailUnknown from unknown
        for row, items in fresh:
            for item in items:
                item.stored(row.seq, row.at)
            self._deliver(row, beside=items[0].speaker)
            self.last_seq = row.seq  # last: what a crash kept from being delivered is caught up with
        acknowledged_at, observe = perf_counter(), self._ports.meters.ack_seconds.observe
        for _, items in fresh:
            for item in items:
                observe(acknowledged_at - item.heard_at)

    async def catch_up(self, last_seq: int) -> None:
        """Deliver what turns out to be stored beyond what was heard, up to `last_seq`."""
        while self.last_seq < last_seq:
            # Nothing beyond: whoever writes that may be heard by another mitra already, on another node (X1).
            limit = min(TAIL_PAGE, last_seq - self.last_seq)
            page = await self._ports.messages.list_messages(self._session_id, self.last_seq, limit)
            if not page:
                return
            for row in page:
                self._deliver(row, beside=None)
                self.last_seq = row.seq
            self._known = None

    def forget_ids(self) -> None:
        """After a crash: what was remembered may be half of a change."""
        self._known = None

    async def _number(self, said: list[Said], session: Session) -> list[tuple[Row, list[Said]]]:
        """Rows for what is new, each with all who said it; everything else is answered here."""
        known = self._known if self._known is not None else await self._load_known()
        refusal = refuse_message(session.status)
        at = self._ports.clock.now()
        # Who speaks is the customer, or the mitra who has the session now: everybody else was refused before.
        customer, mitra = Party.CUSTOMER, session.mitra_sender
        keys: list[tuple[str, str]] = []
        earlier: dict[tuple[str, str], MessageRow | None] = {}
        for item in said:
            sender, client_id = key = (CUSTOMER_SENDER if item.speaker.party is customer else mitra, item.id)
            keys.append(key)
            if known.may_hold(sender, client_id):
                earlier[key] = await self._ports.messages.find_message(self._session_id, sender, client_id)
        fresh: dict[tuple[str, str], tuple[Row, list[Said]]] = {}
        for item, key in zip(said, keys, strict=True):
            first: MessageRow | None = fresh[key][0] if key in fresh else earlier.get(key)
            if first is not None and first.body != item.body:
                item.not_stored(IdReused())
            elif key in fresh:
                fresh[key][1].append(item)
            elif first is not None:
                item.stored(first.seq, first.at)
            elif refusal is not None:
                item.not_stored(refusal)
            else:
                known.add(*key)
                fresh[key] = (Row(self.last_seq + len(fresh) + 1, key[0], item.id, item.body, at), [item])
        return list(fresh.values())

    async def _load_known(self) -> KnownIds:
        known, after_seq = KnownIds(), 0
        while after_seq < self.last_seq:
            # No more than there are: many sessions are read together, and an answer has room for so many rows.
            limit = min(IDS_PAGE, self.last_seq - after_seq)
            page = await self._ports.messages.list_message_ids(self._session_id, after_seq, limit)
            if not page:
                break
            for seq, sender, client_id in page:
                known.add(sender, client_id)
                after_seq = seq
        self._known = known
        return known

    def _deliver(self, row: MessageRow, beside: Ear | None) -> None:
        if self._audience.has_others(beside):  # or there is nothing to build
            self._audience.send(message_frame(self._session_id, row), beside=beside)


def _of_participants(said: list[Said], session: Session) -> list[Said]:
    """What a mitra still had on its way when the session was handed on is not said in her successor's name."""
    participants = (session.customer_id, session.mitra_id)
    theirs = []
    for item in said:
        if item.speaker.user_id in participants:
            theirs.append(item)
        else:
            item.not_stored(SessionNotActive("The session was handed on to another mitra."))
    return theirs


def message_frame(session_id: str, row: MessageRow) -> protocol.Message:
    """A stored message as it goes over the wire."""
    return protocol.Message(
        session_id=session_id,
        seq=row.seq,
        id=row.id,
        sender=sender_of(row.sender),
        body=row.body,
        at=rfc3339(row.at),
    )
