"""Something that answers like FCM, in a process of its own: `python -m scripts.measuring.fcm_stand_in [MS]` prints its port and serves until killed.

It keeps connections, reads each request whole and answers at once, or so many milliseconds later; nothing is checked. Read next: `scripts/measuring/outbox.py`.
"""

import re
import sys
from functools import partial

import trio

LENGTH = re.compile(rb"content-length: *([0-9]+)", re.IGNORECASE)


def answer(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)


SENT = answer(b'{"name":"projects/measured/messages/1"}')
TOKEN = answer(b'{"access_token":"measured","expires_in":3600,"token_type":"Bearer"}')


async def converse(stream: trio.SocketStream, delay_seconds: float = 0.0) -> None:
    received = b""
    try:
        while piece := await stream.receive_some():
            received += piece
            while (end := received.find(b"\r\n\r\n")) >= 0:
                found = LENGTH.search(received, 0, end)
                size = end + 4 + (int(found[1]) if found else 0)
                if len(received) < size:
                    break
                is_token = received.startswith(b"POST /token ")
                received = received[size:]
                await trio.sleep(delay_seconds)
                await stream.send_all(TOKEN if is_token else SENT)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass


async def main() -> None:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    sys.stdout.write(f"{listener.socket.getsockname()[1]}\n")
    sys.stdout.flush()
    delay_seconds = int(sys.argv[1]) / 1000 if len(sys.argv) > 1 else 0.0
    await trio.serve_listeners(partial(converse, delay_seconds=delay_seconds), [listener])


if __name__ == "__main__":
    trio.run(main)
