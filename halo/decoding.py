"""From text to frames: what a socket understands, and the named refusal of everything else.

Nothing gets through that JSON text cannot carry into Postgres (U+0000 is refused here, lone surrogates fail in UTF-8), and nothing is
raised but `FrameRefused`, which names the frame by its own `id` where that could be read. No I/O, no clock. Read next:
`halo/net/connection.py`, which answers with it.
"""

from typing import ClassVar, get_args

import msgspec

from halo.errors import FrameMalformed, UnknownFrameType, ValidationFailed
from halo.protocol import ID_CHARACTERS_MAX, ChatFrame, LobbyFrame


class _Envelope(msgspec.Struct):
    """What is looked for in a frame that did not decode: who it is, and which request it was."""

    type: str | None = None
    id: object = None


_NUL_ESCAPE = "\\u0000"
"""JSON text can carry U+0000 only as this escape; six bytes are cheap to look for, field by field is not."""

_envelope = msgspec.json.Decoder(_Envelope)


def _echoable(frame_id: object) -> str | None:
    """The client's `id`, if it is one that a refusal can carry back."""
    if isinstance(frame_id, str) and 1 <= len(frame_id) <= ID_CHARACTERS_MAX and "\0" not in frame_id:
        return frame_id
    return None


class FrameDecoder:
    """Decodes the text frames of one kind of socket.

    `decode` raises `FrameRefused` with a `FrameMalformed` (a strike), `UnknownFrameType` or `ValidationFailed` (no strike).
    """

    CHAT: ClassVar["FrameDecoder"]
    LOBBY: ClassVar["FrameDecoder"]

    def __init__(self, union: object) -> None:
        self._decode = msgspec.json.Decoder(union, strict=True).decode
        self._types = {member.__struct_config__.tag for member in get_args(union)}

    def decode(self, text: str) -> ChatFrame | LobbyFrame:
        try:
            frame: ChatFrame | LobbyFrame = self._decode(text)
        except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
            raise self._explain(text, error) from None
        if _NUL_ESCAPE in text and any(isinstance(v, str) and "\0" in v for v in msgspec.structs.astuple(frame)):
            frame_id = _echoable(getattr(frame, "id", None))
            raise FrameRefused(
                ValidationFailed("The character U+0000 is not accepted."), frame_id
            )  # Postgres text has none
        return frame

    def _explain(self, text: str, error: Exception) -> "FrameRefused":
        try:
            envelope = _envelope.decode(text)
        except (msgspec.MsgspecError, RecursionError, UnicodeError):
            return FrameRefused(FrameMalformed(), None)
        frame_id = _echoable(envelope.id)
        if envelope.type is None:
            return FrameRefused(FrameMalformed(), frame_id)
        if envelope.type not in self._types:
            return FrameRefused(UnknownFrameType(), frame_id)
        return FrameRefused(ValidationFailed(str(error)), frame_id)


class FrameRefused(Exception):
    """A frame that was not taken: why, and the `id` it carried if that could be read."""

    def __init__(self, refusal: FrameMalformed | UnknownFrameType | ValidationFailed, frame_id: str | None) -> None:
        self.refusal = refusal
        self.frame_id = frame_id
        super().__init__(refusal.message)


FrameDecoder.CHAT = FrameDecoder(ChatFrame)
FrameDecoder.LOBBY = FrameDecoder(LobbyFrame)
