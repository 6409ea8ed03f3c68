"""Whether code may be loaded from a file: only if nobody but this user, or root, could have put it there.

The rule is sshd's for authorized_keys: the file and every folder above it belong to this user or to root, and
nobody else can write to them. Folders further up may be open to all with the sticky bit, like /tmp, where
others cannot replace what is not theirs.
"""

import os
import stat
from pathlib import Path


def why_not(path: str | os.PathLike[str]) -> str | None:
    """Why code from `path`, or from a folder of that name, cannot be trusted; None if it can.

    What does not exist yet is judged by the folders above it. Windows keeps other users out of a user's
    folders by itself, so there everything can be trusted.
    """
    if not hasattr(os, "geteuid"):
        return None
    real = Path(os.path.realpath(path))
    holder = real if real.is_dir() else real.parent  # the folder that the code lies in
    for place in (real, *real.parents):
        try:
            status = place.stat()
        except FileNotFoundError:
            continue
        except OSError as error:
            return f"{place}: {(error.strerror or 'cannot be read').lower()}"
        if status.st_uid not in (0, os.geteuid()):
            return f"{place} belongs to another user"
        sticky = bool(status.st_mode & stat.S_ISVTX) and place != holder and place != real
        if _others_write(status) and not sticky:
            return f"others can write to {place}"
    return None


def _others_write(status: os.stat_result) -> bool:
    """Whether anybody but the owner can write; a group of nobody else does not count."""
    if status.st_mode & stat.S_IWOTH:
        return True
    return bool(status.st_mode & stat.S_IWGRP) and not _private_group(status.st_gid)


def _private_group(gid: int) -> bool:
    """Whether this group is the user's own, named alike and without other members, as on many systems."""
    import grp
    import pwd

    try:
        group, user = grp.getgrgid(gid), pwd.getpwuid(os.geteuid())
    except KeyError:
        return False
    return gid == user.pw_gid and group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}
