"""Reading and writing a session's files for the host: the supervisor's part, which opens them itself.

The workspace is opened by the session's keeper, once, when the session has shown that it is there.
"""

from __future__ import annotations

import errno
import os

from . import disk, files, wire
from .overseer import Overseer
from .tracked import Session

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class FileAccess:
    """Works on calls of the kinds `put` and `get`.

    Args:
        supervisor: Whose sessions they are for.
    """

    def __init__(self, supervisor: Overseer) -> None:
        self._supervisor = supervisor

    def start(self, session: Session) -> None:
        """Begins the call that a session has."""
        call = session.call
        assert call is not None
        if session.workspace >= 0:
            self.perform(session, session.workspace)
        elif session.ready:
            self._supervisor.order(b"W", session)
        else:  # its answer shows that its workspace is mounted
            self._supervisor.send(session, {"op": "ready", "id": call.id})

    def perform(self, session: Session, workspace: int) -> None:
        """Reads or writes, now that the workspace is open; -1 says that it cannot be."""
        session.workspace = workspace
        call = session.call
        if call is None or call.operation not in ("put", "get"):
            return
        data = b""
        try:
            if workspace < 0:
                raise OSError(errno.ESRCH, "the session has ended")
            if call.operation == "put":
                if session.folders and not disk.has_room(session.limits, session.folders[0], len(call.body)):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                files.write_file(workspace, call.head["path"], call.body)
            else:
                data = files.read_file(workspace, call.head["path"], wire.MAX_BODY)
        except OSError as error:
            status = "disk_limit" if error.errno in _DISK_ERRORS else "error"
            self._supervisor.finish(session, status, error.errno, error.strerror or str(error))
        else:
            self._supervisor.finish(session, "ok", 0, "", data)
