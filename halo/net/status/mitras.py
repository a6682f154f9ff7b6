"""Mitras: who is available and who is not and why, one mitra with her living sessions, and shutting her out or letting her in again.

A state here is what Postgres knows; on her own page what Valkey and the sockets know stands beside it. It must never change anything by a
look. Read next: `halo/net/operations.py`, `halo/store/lookout.py`.
"""

from typing import Final

from halo.net.desk import Desk
from halo.net.operations import Operations
from halo.net.status import asked
from halo.net.status.section import Context, Done, Section, Visit
from halo.session import SessionStatus

PATH: Final = "/mitras"
STATES: Final = ("available", "full", "silent", "offline", "deactivated")
LIVING_AT_MOST: Final = 100
"""As many sessions as a mitra can have room for."""


def mitras_section(desk: Desk) -> Section:
    """The pages `/mitras` and `/mitras/<id>`, and what can be done there."""
    section, operations, insight = Section(), Operations(desk), desk.insight

    @section.page(PATH, title="Mitras", template="mitras/list.html", menu="Mitras")
    async def mitras(visit: Visit) -> Context:  # noqa: ARG001  # the frame tells every page who looks at it
        state, search, cursor = asked.choice("state", STATES), asked.text("q"), asked.identifier("cursor")
        found = await insight.lookout.list_mitras(state, search, insight.heard_since(), asked.ROWS, cursor)
        return {
            "mitras": found,
            "state": state,
            "search": search,
            "states": STATES,
            "next_page": asked.next_page(found[-1].mitra_id if len(found) == asked.ROWS else None),
            "is_first": cursor is None,
            "now": desk.clock.now(),
        }

    @section.page(PATH + "/{mitra_id}", title="Mitra", template="mitras/mitra.html")
    async def mitra(visit: Visit) -> Context:
        mitra_id = visit.places["mitra_id"]
        return {
            "mitra": await desk.mitras.load_status(mitra_id),
            "verdict": await desk.mirror.reachability(mitra_id),
            "sessions": await insight.lookout.list_living_of(mitra_id, LIVING_AT_MOST),
            "now": desk.clock.now(),
        }

    async def asking(visit: Visit) -> Context:
        mitra_id = visit.places["mitra_id"]
        living = await insight.lookout.list_living_of(mitra_id, LIVING_AT_MOST)
        return {
            "mitra": await desk.mitras.load_status(mitra_id),
            "sessions": [session for session in living if session.status != SessionStatus.REROUTING],
            "left_alone": [session for session in living if session.status == SessionStatus.REROUTING],
            "now": desk.clock.now(),
        }

    deactivate, activate = PATH + "/{mitra_id}/deactivate", PATH + "/{mitra_id}/activate"
    section.page(deactivate, title="Deactivate this mitra?", template="mitras/deactivate.html")(asking)

    @section.action(
        deactivate,
        name="deactivate_mitra",
        done="She is shut out, and her sessions have ended, but for those that wait for another mitra.",
    )
    async def deactivate_mitra(visit: Visit) -> Done:
        await operations.deactivate_mitra(visit.places["mitra_id"], visit.operator)
        return Done(f"{PATH}/{visit.places['mitra_id']}")

    @section.action(activate, name="activate_mitra", done="She may sign in again.")
    async def activate_mitra(visit: Visit) -> Done:
        await operations.activate_mitra(visit.places["mitra_id"], visit.operator)
        return Done(f"{PATH}/{visit.places['mitra_id']}")

    return section
