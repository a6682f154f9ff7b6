"""When a running clock speaks: every interval, and at each warning before the end.

Pure arithmetic on moments. `session_timer` frames are not events: they change nothing and are not written down. Read next:
`halo/actors/alarm.py`.
"""

from halo.clock import Moment
from halo.config import LiveConfig
from halo.session import Session


def next_timer(session: Session, last_timer_at: Moment, config: LiveConfig) -> Moment | None:
    """The moment of the next `session_timer` after `last_timer_at`, or None while the clock stands still."""
    expires_at = session.expires_at
    if expires_at is None:
        return None
    moments = [last_timer_at + config.session_timer_interval_seconds * 1000]
    moments += [
        warning
        for seconds in config.session_warning_seconds
        if (warning := expires_at - seconds * 1000) > last_timer_at
    ]
    return min(moments)
