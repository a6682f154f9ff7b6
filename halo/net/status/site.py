"""The status page as a whole: the frame, the table of contents and the doors, joined to the admin listener's application.

It makes things and decides nothing. Read next: `halo/net/status/frame.py`, `halo/net/status/contents.py`.
"""

from quart_trio import QuartTrio

from halo.net.desk import Desk
from halo.net.status.account import account_section
from halo.net.status.contents import SECTIONS
from halo.net.status.frame import Frame
from halo.net.status.passwords import Passwords
from halo.net.status.sign_in import SignIn


def install_status_page(app: QuartTrio, desk: Desk, passwords: Passwords | None = None) -> Frame:
    """Let `app` serve the status page; the frame is given back for whoever wants to look through its tables."""
    hashing = passwords or Passwords()
    frame = Frame(desk, [*(section(desk) for section in SECTIONS), account_section(desk, hashing)])
    frame.install(app)
    SignIn(desk, frame, hashing).install(app)
    return frame
