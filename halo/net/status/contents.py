"""The table of contents: every section of the status page, in the order of the menu.

A section that is not listed here does not exist. Read next: `halo/net/status/section.py`.
"""

from collections.abc import Callable
from typing import Final

from halo.net.desk import Desk
from halo.net.status.audit import audit_section
from halo.net.status.configuration import configuration_section
from halo.net.status.failures import failures_section
from halo.net.status.messages import messages_section
from halo.net.status.mitras import mitras_section
from halo.net.status.overview import overview_section
from halo.net.status.refunds import refunds_section
from halo.net.status.section import Section
from halo.net.status.sessions import sessions_section
from halo.net.status.tasks import tasks_section

SECTIONS: Final[tuple[Callable[[Desk], Section], ...]] = (
    overview_section,
    sessions_section,
    mitras_section,
    failures_section,
    refunds_section,
    tasks_section,
    configuration_section,
    audit_section,
    messages_section,
)
