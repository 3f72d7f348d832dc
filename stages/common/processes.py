"""No process outlives the run that started it, and nothing of a killed one stays in the temporary folder.

die_with_parent()        # at import in what vLLM spawns; at the start of a stage that DVC runs
socket_folder()          # for the sockets between an engine's processes; gone with this process

vLLM 0.15.0's engine core waits for its client for ever: a stage killed by -9 would leave it, its workers and
their memory behind. Linux sends the signal of PR_SET_PDEATHSIG whatever the parent died of.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from stages.common.errors import UserError
from stages.common.files import sweep, temporary_prefix

_PR_SET_PDEATHSIG = 1
_LONGEST_SOCKET = 107  # bytes of a socket's path, sun_path
_SHORT_PARENT = Path("/tmp")
# Before the folder's own name, of a process of seven digits, and the UUID that vLLM calls a socket.
_LONGEST_PARENT = _LONGEST_SOCKET - len("/.treespec.4194304-abcdefgh.tmp/") - 36
_SPAWNED_BY = "TREESPEC_SPAWNED_BY"  # the process whose environment it is


def tie_engine_processes() -> None:
    """Whatever vLLM forks from here dies with this process; so does this one, if vLLM spawned it.

    A spawned process imports the stage's own module before it does anything else, and so comes here.
    """
    if "--multiprocessing-fork" in sys.orig_argv:
        die_with_parent()
        if os.environ.get(_SPAWNED_BY) != str(os.getppid()):  # it has died meanwhile
            os._exit(1)
    os.environ[_SPAWNED_BY] = str(os.getpid())
    os.register_at_fork(after_in_child=die_with_parent)


def die_with_parent(signal_number: int = signal.SIGKILL) -> None:
    """Let the kernel send this process a signal when its parent dies; nothing where there is no Linux."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal_number), 0, 0, 0)
    except AttributeError:
        return


def end_when_asked() -> None:
    """SIGTERM ends this process as Ctrl-C does, so that temporary files go and an engine is shut down.

    A stage that DVC runs is asked to when DVC dies.
    """
    signal.signal(signal.SIGTERM, _terminate)
    if "DVC_STAGE" in os.environ:
        die_with_parent(signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """SIGTERM came."""


def _terminate(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # asked twice: at once
    raise Terminated


def socket_folder() -> Path:
    """A new folder for an engine's sockets, in the temporary one or, where that is too deep, in /tmp.

    UserError if neither leaves a socket's path within what Linux takes.
    """
    parents = [Path(tempfile.gettempdir()), _SHORT_PARENT]
    parent = next((one for one in parents if len(os.fsencode(one)) <= _LONGEST_PARENT and one.is_dir()), None)
    if parent is None:
        expected = f"a folder whose path has at most {_LONGEST_PARENT} bytes, for an engine's sockets"
        raise UserError("TMPDIR", str(parents[0]), expected)
    sweep(parent)
    folder = Path(tempfile.mkdtemp(prefix=temporary_prefix("treespec"), suffix=".tmp", dir=parent))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
