"""Which system account the embedded PostgreSQL runs as: it refuses to run as root."""

import os
import pwd
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from loader.errors import DatabaseUnfit
from recorder.runtime.logging import get_logger

# In containers and CI everything is root's. Everybody has this account, and it owns nothing.
_FALLBACK = "nobody"

log = get_logger("loader")


class PopenAccount(TypedDict, total=False):
    """The arguments of subprocess that name an account."""

    user: int
    group: int
    extra_groups: list[int]


@dataclass(frozen=True)
class Account:
    """A system account; `switch` if it is not the one this process runs as."""

    uid: int
    gid: int
    switch: bool

    def popen(self) -> PopenAccount:
        """Return what makes a child process run as it."""
        return {"user": self.uid, "group": self.gid, "extra_groups": []} if self.switch else {}

    def own(self, path: Path) -> None:
        """Make it the owner of a path."""
        if self.switch:
            os.chown(path, self.uid, self.gid)


def account_for(home: Path) -> Account:
    """Return the account of a cluster's folder: ours; for root the one the folder or its parent belongs to."""
    if os.geteuid() != 0:
        return Account(os.geteuid(), os.getegid(), switch=False)
    for path in (home, home.parent):
        found = path.stat()
        if found.st_uid != 0 and _exists(found.st_uid):
            return Account(found.st_uid, found.st_gid, switch=True)
    try:
        nobody = pwd.getpwnam(_FALLBACK)
    except KeyError as exc:
        raise DatabaseUnfit(
            f"PostgreSQL does not run as root, and there is no account {_FALLBACK!r} to run it as",
            remedy="run the loader as another user, or set DATABASE_URL",
        ) from exc
    return Account(nobody.pw_uid, nobody.pw_gid, switch=True)


def let_through(path: Path, account: Account) -> None:
    """Let an account that is not ours reach a path.

    The folders above may be closed to it (those of temporary files, or root's own): they get the right to pass
    through, never to list.
    """
    if not account.switch:
        return
    for folder in path.parents:
        mode = stat.S_IMODE(folder.stat().st_mode)
        if not mode & stat.S_IXOTH and folder.stat().st_uid != account.uid:
            folder.chmod(mode | stat.S_IXOTH)
            log.warning("embedded.folder_opened", folder=str(folder), why="PostgreSQL does not run as root")


def _exists(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False  # initdb refuses an account without a name
    return True
