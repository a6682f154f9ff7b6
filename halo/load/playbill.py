"""Which scene a worker plays for which scenario. Read next: `halo/load/scenes.py` and `halo/load/rushes.py`."""

from collections.abc import Callable, Mapping
from typing import Final

from halo.load.house import House
from halo.load.rushes import ExtensionRush, Heartbeats, PairingRush
from halo.load.scenes import Chat, ConnectStorm, Day, Scene, SlowReaders

SCENES: Final[Mapping[str, Callable[[House], Scene]]] = {
    "steady": Chat,
    "day": Day,
    "connect-storm": ConnectStorm,
    "reconnect-storm": Chat,
    "slow-readers": SlowReaders,
    "pairing-rush": PairingRush,
    "extension-rush": ExtensionRush,
    "heartbeats": Heartbeats,
}
