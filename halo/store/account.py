"""As whom the embedded servers run, and how they reach their files when halo itself runs as root.

Postgres refuses to run as root. A root halo therefore runs its servers as a user id that has no account: nobody can log in as
it, no other program runs as it, and the machine's list of users stays as it was. Directories that this user id cannot pass get
one ACL entry that lets its group through (`--x`, no listing, no reading, nobody else). What must never happen here is what the
package's own code does: creating an account, and opening every directory up to `/` to everybody.

An ordinary user's halo runs everything as that user, and changes no mode at all. Read next: `halo/store/embedded.py`.
"""

import errno
import os
import pwd
import shutil
import stat
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypedDict

_UNNAMED_IDS: Final = range(60_880, 61_184)
"""Ids that neither distributions nor systemd hand out, and below 65,536, so that containers with mapped ids have them."""

_BORROWED: Final = "nobody"
"""initdb, and only initdb, wants an account for its user id; for that half second it borrows this one, in our private group."""

_ACL: Final = "system.posix_acl_access"
_ACL_HEADER: Final = struct.Struct("<I")
_ACL_ENTRY: Final = struct.Struct("<HHI")
_ACL_VERSION: Final = 2
_OWNER, _OWNING_GROUP, _GROUP, _MASK, _OTHER = 0x01, 0x04, 0x08, 0x10, 0x20
_NO_ID: Final = 0xFFFF_FFFF
_PASS: Final = 1
"""The permission to pass through a directory, without listing it."""


class PathClosed(Exception):
    """A server cannot reach its files; the message is one sentence for the operator."""


class Identity(TypedDict):
    """The options with which a process is started as somebody; None keeps what halo is."""

    user: int | None
    group: int | None
    extra_groups: list[int] | None


@dataclass(frozen=True, slots=True)
class Account:
    """The user and the group of the embedded servers."""

    uid: int
    gid: int
    borrowed_name: bool = False
    """Has no account, and halo is not root: initdb needs a user namespace in which it seems to have one."""

    @property
    def switched(self) -> bool:
        """Is it another user than halo's?"""
        return self.uid != os.geteuid()

    @property
    def identity(self) -> Identity:
        """Without any of root's groups, where halo is root."""
        if not self.switched:
            return {"user": None, "group": None, "extra_groups": None}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    def wrapped(self, argv: list[str]) -> list[str]:
        """The command, inside a user namespace where one is needed."""
        if not self.borrowed_name:
            return argv
        return ["unshare", "--user", f"--map-user={pwd.getpwnam(_BORROWED).pw_uid}", *argv]

    def own(self, path: Path) -> None:
        """Give a file or a directory to this account; a link is given itself, never what it points to."""
        if self.switched:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)

    def own_tree(self, root: Path) -> None:
        """Give a directory and all that is in it."""
        if self.switched:
            for directory, _, names in os.walk(root):
                self.own(Path(directory))
                for name in names:
                    self.own(Path(directory, name))

    def let_through(self, path: Path) -> None:
        """See to it that this account can pass every directory above `path`.

        Raises `PathClosed` when it cannot and the filesystem knows no ACLs.
        """
        if not self.switched:
            return
        for directory in reversed(path.resolve().parents):
            if not self._may_pass(directory):
                try:
                    _admit(directory, self.gid)
                except OSError as fault:
                    raise PathClosed(
                        f"Postgres refuses to run as root and another user cannot pass {directory} ({fault.strerror}): run halo as "
                        f"an ordinary user, move it and its data directory, or give HALO_DATABASE_URL and HALO_VALKEY_URL."
                    ) from fault

    def _may_pass(self, directory: Path) -> bool:
        status = directory.stat()
        if status.st_uid == self.uid:
            return bool(status.st_mode & stat.S_IXUSR)
        entries = _entries(directory)
        if (_GROUP, self.gid) in entries:
            return bool(entries[_GROUP, self.gid] & entries[_MASK, _NO_ID] & _PASS)
        if status.st_gid == self.gid:
            return bool(entries[_OWNING_GROUP, _NO_ID] & _PASS)
        return bool(entries[_OTHER, _NO_ID] & _PASS)


def account_for(owned: Path) -> Account:
    """Whoever owns the database's directory already; at the first start, ourselves, or an unnamed user when we are root."""
    if os.geteuid() != 0:
        return Account(os.geteuid(), os.getegid())
    if owned.exists() and owned.stat().st_uid != 0:
        return Account(owned.stat().st_uid, owned.stat().st_gid)
    unnamed = next(number for number in _UNNAMED_IDS if not _is_named(number))
    return Account(unnamed, unnamed)


def named(account: Account) -> Account:
    """The same, or a stand-in with an account, for initdb. Raises `PathClosed` when there is none."""
    if _is_named(account.uid):
        return account
    if account.switched:
        return replace(account, uid=pwd.getpwnam(_BORROWED).pw_uid)
    if shutil.which("unshare") is None:
        raise PathClosed(
            f"The user id {account.uid} has no account on this machine, without which Postgres makes no database: "
            f"add one, or give HALO_DATABASE_URL."
        )
    return replace(account, borrowed_name=True)


def _is_named(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _entries(path: Path) -> dict[tuple[int, int], int]:
    """The ACL of a directory: (kind, id) → permissions; made from the mode bits where there is no ACL."""
    try:
        raw = os.getxattr(path, _ACL)
    except OSError as fault:
        if fault.errno not in {errno.ENODATA, errno.ENOTSUP}:
            raise
        mode = path.stat().st_mode
        return {(_OWNER, _NO_ID): mode >> 6 & 7, (_OWNING_GROUP, _NO_ID): mode >> 3 & 7, (_OTHER, _NO_ID): mode & 7}
    return {(kind, who): allowed for kind, allowed, who in _ACL_ENTRY.iter_unpack(raw[_ACL_HEADER.size :])}


def _admit(directory: Path, gid: int) -> None:
    """One more entry: this group may pass. Every other right stays as it was."""
    entries = _entries(directory)
    mask = entries.get((_MASK, _NO_ID), entries[_OWNING_GROUP, _NO_ID])
    entries[_MASK, _NO_ID] = mask | _PASS
    entries[_GROUP, gid] = _PASS
    packed = b"".join(_ACL_ENTRY.pack(kind, allowed, who) for (kind, who), allowed in sorted(entries.items()))
    os.setxattr(directory, _ACL, _ACL_HEADER.pack(_ACL_VERSION) + packed)
