"""The session over HTTP: `/api/chat/…` (spec 4), the same commands as on its socket, through the same door.

Nothing is decided here: every change goes to the session's actor, and what was said comes from its rows. Somebody who takes no part in
a session learns nothing of it.
Read next: `halo/actors/registry.py`.
"""

from halo.actors.conversation import message_frame
from halo.clock import rfc3339
from halo.events import EndedBy
from halo.net.body import uuid_or_none
from halo.net.call import Call, Handler
from halo.net.desk import Desk
from halo.protocol import ExtensionState, SessionState
from halo.resources import AnswerExtension, AskExtension, MessagePage, OwnSessions, SessionInfo
from halo.session import Party, extension_state

ENDED_BY = {Party.CUSTOMER: EndedBy.CUSTOMER, Party.MITRA: EndedBy.MITRA}


def chat_handlers(desk: Desk) -> dict[str, Handler]:
    """The handlers of these routes, by name."""

    async def own_sessions(call: Call) -> OwnSessions:
        views = await desk.sessions.living_of(call.user.user_id)
        now = desk.clock.now()
        return OwnSessions(
            sessions=tuple(view.session.state(now, view.last_seq) for view in views), server_time=rfc3339(now)
        )

    async def session_info(call: Call) -> SessionInfo:
        view = await desk.sessions.view(call.places["session_id"], user_id=call.user.user_id)
        now, pending = desk.clock.now(), view.session.extension
        return SessionInfo(
            session=view.session.state(now, view.last_seq),
            pending_extension=None if pending is None else extension_state(pending),
            last_seq=view.last_seq,
            server_time=rfc3339(now),
        )

    async def messages(call: Call) -> MessagePage:
        # Who reads is asked together with the rows: what her successor hears is none of hers, whichever node she asks (X1).
        session_id, query = call.places["session_id"], call.query
        read = await desk.messages.list_messages_to(call.user.user_id, session_id, query["after_seq"], query["limit"])
        messages = tuple(message_frame(session_id, row) for row in read.messages)
        return MessagePage(messages=messages, last_seq=read.last_seq)

    async def request_extension(call: Call) -> ExtensionState:
        body: AskExtension = call.body
        extension = await desk.sessions.request_extension(
            call.places["session_id"],
            customer_id=call.user.user_id,
            duration_minutes=body.duration_minutes,
            price=body.price,
            payment_request_id=uuid_or_none(body.extension_payment_request_id),
            extension_id=call.derived_id,
        )
        return extension_state(extension)

    async def respond_extension(call: Call) -> ExtensionState:
        body: AnswerExtension = call.body
        extension = await desk.sessions.respond_extension(
            call.places["session_id"], call.places["extension_id"], mitra_id=call.user.user_id, accepted=body.accepted
        )
        return extension_state(extension)

    async def cancel_extension(call: Call) -> ExtensionState:
        extension = await desk.sessions.cancel_extension(
            call.places["session_id"], call.places["extension_id"], customer_id=call.user.user_id
        )
        return extension_state(extension)

    async def end_session(call: Call) -> SessionState:
        who = call.user
        view = await desk.sessions.end(call.places["session_id"], ENDED_BY[who.user_type], user_id=who.user_id)
        return view.session.state(desk.clock.now(), view.last_seq)

    return {
        "own_sessions": own_sessions,
        "session_info": session_info,
        "messages": messages,
        "request_extension": request_extension,
        "respond_extension": respond_extension,
        "cancel_extension": cancel_extension,
        "end_session": end_session,
    }
