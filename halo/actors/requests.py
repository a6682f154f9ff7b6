"""What people ask of a session, one function a command: an extension, its answer, its withdrawal, the end, another mitra.

Each checks who asks, gathers the facts of its event, has it decided, and gives back what the asker is told. Must never change the
session itself or speak to anyone but by a step (`halo/actors/decider.py`): a refusal leaves everything as it was. A new command is a
struct in `halo/actors/commands.py`, a line in `answer`, and a function here. Read next: `halo/extension.py`, which checks what is
asked for.
"""

import uuid
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import assert_never

from halo import extension as asking
from halo.actors import rerouting
from halo.actors.commands import (
    AnswerExtension,
    AssignMitra,
    CancelExtension,
    Command,
    End,
    RequestExtension,
    Transfer,
    View,
)
from halo.actors.decider import Decider
from halo.actors.ports import Ports
from halo.effects import ResolveExtension
from halo.errors import ExtensionResolved, IdReused, NotFound, SessionNotActive
from halo.events import EndedBy, EndRequested, Event, ExtensionAnswered, ExtensionCancelled, ExtensionRequested
from halo.session import Extension, SessionStatus


async def answer(command: Command, decider: Decider, ports: Ports) -> None:
    """Do what is asked and tell the asker.

    Raises:
        Refusal: it was not done, or nobody knows (`StoreUnavailable`); the asker was not told.
    """
    match command:
        case RequestExtension():
            command.asker.resolved(await _request_extension(command, decider, ports))
        case AnswerExtension():
            command.asker.resolved(await _answer_extension(command, decider, ports))
        case CancelExtension():
            command.asker.resolved(await _cancel_extension(command, decider, ports))
        case End():
            command.asker.resolved(await _end(command, decider, ports))
        case Transfer():
            command.asker.resolved(await rerouting.transfer(decider, ports))
        case AssignMitra():
            command.asker.resolved(await rerouting.assign(command, decider, ports))
        case _:
            assert_never(command)


async def _request_extension(command: RequestExtension, decider: Decider, ports: Ports) -> Extension:
    extension_id = command.extension_id or str(uuid.uuid4())
    if command.extension_id is not None:
        earlier = await ports.rows.find_extension(decider.session.session_id, extension_id)
        if earlier is not None:  # asked before, and the answer was lost on its way
            if (command.asked.customer_id, command.asked.payment_request_id) != (
                decider.session.customer_id,
                earlier.payment_request_id,
            ):
                raise IdReused
            return earlier

    async def gather() -> Event:
        config = ports.facts.config()
        named = command.asked.payment_request_id
        found = await ports.facts.find_payment(named) if named else None
        payment = asking.check(decider.session, command.asked, found, config)
        now = ports.clock.now()
        return ExtensionRequested(at=now, extension=asking.request(decider.session, payment, extension_id, now, config))

    _, decided = await decider.decide_now(gather)
    assert decided.session.extension is not None  # the rule put it there
    return decided.session.extension


async def _answer_extension(command: AnswerExtension, decider: Decider, ports: Ports) -> Extension:
    async def gather() -> Event:
        if command.mitra_id != decider.session.mitra_id:
            raise NotFound
        return ExtensionAnswered(
            at=ports.clock.now(),
            extension_id=command.extension_id,
            accepted=command.accepted,
            config=ports.facts.config(),
        )

    return await _resolve_extension(gather, command.extension_id, decider, ports)


async def _cancel_extension(command: CancelExtension, decider: Decider, ports: Ports) -> Extension:
    async def gather() -> Event:
        if command.customer_id != decider.session.customer_id:
            raise NotFound
        return ExtensionCancelled(at=ports.clock.now(), extension_id=command.extension_id, config=ports.facts.config())

    return await _resolve_extension(gather, command.extension_id, decider, ports)


async def _resolve_extension(
    gather: Callable[[], Awaitable[Event]], extension_id: str, decider: Decider, ports: Ports
) -> Extension:
    try:
        before, decided = await decider.decide_now(gather)
    except ExtensionResolved:
        if await ports.rows.find_extension(decider.session.session_id, extension_id) is None:
            raise NotFound("This session has no such extension.") from None
        raise
    assert before.extension is not None  # the rule resolved it
    status = next(effect.status for effect in decided.effects if isinstance(effect, ResolveExtension))
    return replace(before.extension, status=status)


async def _end(command: End, decider: Decider, ports: Ports) -> View:
    async def gather() -> Event:
        participants = {decider.session.customer_id, decider.session.mitra_id}
        if command.user_id is not None and command.user_id not in participants:
            raise NotFound
        if command.by is EndedBy.DEACTIVATION and decider.session.status is SessionStatus.REROUTING:
            raise SessionNotActive("The session seeks another mitra already.")  # it was listed while it was still hers
        return EndRequested(at=ports.clock.now(), by=command.by)

    await decider.decide(gather)
    return decider.view()
