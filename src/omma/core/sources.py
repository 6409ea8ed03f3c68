"""What is said of a path that a user typed and at which there is nothing, or nothing that may be seen."""

import errno
import os


def not_found(typed: str) -> Exception:
    """The error for a source of images that is not there, as the user typed it."""
    return missing(typed, f"{typed}: not found; give a folder, glob, archive, manifest or array of images")


def missing(typed: str, said: str) -> Exception:
    """The error for a path that does not exist: ValueError with these words, unless the system says why not.

    An OSError tells of a folder above it that may not be entered, a loop of links, a name that is too long.
    """
    try:
        os.stat(os.path.expanduser(typed))
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.ENOENT, errno.ENOTDIR):
            return error
    return ValueError(said)
