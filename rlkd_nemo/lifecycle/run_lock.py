"""One job a directory: a file that its holder keeps locked.

The lock is the kernel's (flock), so that it goes with its process however that ends; the file says who holds it and is
removed by whoever gives it back. Where it is found unlocked, its holder died: on this host, or in an earlier start of
this Slurm job, it is taken over. A dead holder on another host cannot be told from one whose lock this host does not
see (NFS mounted with local locks), and neither can any on a file system without locks, unless it names a process of
this host that is gone: these are refused, and the error says which file to remove.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from rlkd_nemo.errors import InputError

NAME = "run.lock"
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


class RunLock:
    """Holds `<directory>/run.lock` from `acquire` to `release`. For one process of a job: its main rank."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / NAME
        self._handle: int | None = None

    def acquire(self) -> None:
        """Make the directory if it is missing, see that it can be written, and hold it.

        Raises: InputError when another job holds it (or may), or when nothing can be written there.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = self._open()
        except OSError as err:
            raise InputError(
                f"nothing can be written to {self.path.parent} ({type(err).__name__}: {err.strerror}); wanted a "
                "directory of one's own: change exp_manager.exp_dir"
            ) from err
        try:
            self._check(handle)
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps(_myself()).encode(), 0)
        except OSError as err:  # a full disk
            self.path.unlink(missing_ok=True)  # while it is locked: nobody finds half a record
            os.close(handle)
            raise InputError(
                f"{self.path} cannot be written ({type(err).__name__}: {err.strerror}); make room, or change "
                "exp_manager.exp_dir"
            ) from err
        except BaseException:
            os.close(handle)
            raise
        self._handle = handle

    def release(self) -> None:
        """Give the directory back; the file goes. A second call does nothing."""
        if self._handle is not None:
            self.path.unlink(missing_ok=True)
            os.close(self._handle)
            self._handle = None

    def _open(self) -> int:
        """A handle on the file that has this name once it is locked; InputError when it is locked already."""
        while True:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = _read(handle)
                os.close(handle)
                raise InputError(
                    f"{self.path.parent} is in use by another job: {_who(holder)}; wait for its end or stop it, or set "
                    "exp_manager.exp_dir to another directory"
                ) from None
            except OSError as err:
                if err.errno not in _NO_LOCKS:
                    os.close(handle)
                    raise
            # Its holder may have removed it between our opening and locking it: that file is no longer the lock.
            try:
                if os.stat(self.path).st_ino == os.fstat(handle).st_ino:
                    return handle
            except FileNotFoundError:
                pass
            os.close(handle)

    def _check(self, handle: int) -> None:
        holder, me = _read(handle), _myself()
        if not holder or (me["job"] is not None and holder.get("job") == me["job"]):
            return
        locked = _locks(handle)
        if holder.get("host") == me["host"] and (locked or not Path(f"/proc/{holder.get('pid')}").exists()):
            return
        raise InputError(
            f"{self.path.parent} may be in use by another job: {_who(holder)}. It did not give the directory back and "
            f"cannot be seen from {me['host']}; if it has ended, remove {self.path}, else set exp_manager.exp_dir to "
            "another directory"
        )


def _locks(handle: int) -> bool:
    """Does this file system know locks? (Locking again what one holds succeeds.)"""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _myself() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "job": os.environ.get("SLURM_JOB_ID"),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _read(handle: int) -> dict[str, Any]:
    try:
        found = json.loads(os.pread(handle, 4096, 0) or b"{}")
    except ValueError:  # torn by a kill
        return {"host": "unknown"}
    return found if isinstance(found, dict) else {"host": "unknown"}


def _who(holder: dict[str, Any]) -> str:
    job = f", Slurm job {holder['job']}" if holder.get("job") else ""
    return f"process {holder.get('pid', '?')} on {holder.get('host', '?')}{job}, since {holder.get('since', '?')}"
