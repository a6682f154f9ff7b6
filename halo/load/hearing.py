"""What a lean client looks at in the frames that arrive; everything else in them is for people. PURE.

One struct for all types, because telling types apart first costs more than the fields that stay empty. Read next: `halo/load/chats.py`.
"""

from typing import Final

import msgspec


class Heard(msgspec.Struct, gc=False):
    """Any frame of the server."""

    type: str
    id: str | None = None
    seq: int | None = None
    sender: str = ""
    body: str = ""
    code: str = ""
    retry_after_ms: int | None = None
    retryable: bool = False
    session_id: str = ""
    pairing_id: str = ""
    offer_id: str = ""
    extension_id: str = ""
    accepted: bool = False
    reason: str = ""
    cause: str = ""
    remaining_seconds: int = 0


decode: Final = msgspec.json.Decoder(Heard).decode
"""Raises msgspec.DecodeError for what is no frame of halo's."""
