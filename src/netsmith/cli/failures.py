"""From an exception to what a user reads: one message on standard error and an exit code."""

from __future__ import annotations

import errno
import os

from netsmith.errors import ConfigError, NetsmithError

USER_ERROR = 2

_FULL = {errno.ENOSPC, errno.EDQUOT}


def message_of(failure: BaseException) -> str | None:
    """The text for a failure that the user can mend; None for a fault of ours, which deserves its traceback."""
    if isinstance(failure, ConfigError):
        missing = [f for f in failure.faults if f not in str(failure)]
        return "\n".join([str(failure), *(f"  - {fault}" for fault in missing)])
    if isinstance(failure, NetsmithError):
        return str(failure)
    if isinstance(failure, FileNotFoundError) and failure.filename:
        return f"there is no file or folder {failure.filename!s}. Check the path; it is read from {os.getcwd()}."
    if isinstance(failure, PermissionError) and failure.filename:
        return f"no permission for {failure.filename!s}. Choose another place, or change who may write there."
    if isinstance(failure, (IsADirectoryError, NotADirectoryError)) and failure.filename:
        kind = "a folder, where a file was expected" if isinstance(failure, IsADirectoryError) else "no folder"
        return f"{failure.filename!s} is {kind}."
    if isinstance(failure, OSError) and failure.errno in _FULL:
        where = f" at {failure.filename!s}" if failure.filename else ""
        return f"no space left{where}. Free some, or give another --out; what was finished before is kept."
    if isinstance(failure, OSError) and failure.errno == errno.ENAMETOOLONG:
        return f"the name {str(failure.filename)[:60]}... is too long for the file system. Give a shorter one."
    if isinstance(failure, MemoryError) or type(failure).__name__ == "OutOfMemoryError":
        return "out of memory. Try a smaller batch size, fewer probe images, or --device cpu."
    return None


def interrupted_message(out: str | None, again: str | None, detail: str = "") -> str:
    """What Ctrl-C or SIGTERM leaves behind and how to go on; `detail` is what the work itself says of that."""
    if out is None or again is None:
        return "interrupted; nothing was written."
    text = f"interrupted. What was finished is kept in {out}; go on with:\n  {again}"
    return f"{text}\n{detail}" if detail else text
