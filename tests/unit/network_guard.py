"""Python processes that may speak to this machine only, and a file that tells on those that tried others."""

from __future__ import annotations

from pathlib import Path

_CODE = """
import sys

LOCAL = ("127.", "::1", "localhost", "0.0.0.0")

def refuse(event, arguments):
    if event == "socket.connect":
        socket, address = arguments
        # What is only bound to a datagram socket is not sent: so vLLM learns this machine's own address.
        remote = isinstance(address, tuple) and int(socket.type) == 1 and address[0]
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        remote = arguments[0]
    else:
        return
    if remote and not str(remote).startswith(LOCAL):
        with open({told!r}, "a") as file:
            file.write(f"{{sys.argv}} {{event}} {{arguments}}\\n")
        raise ConnectionRefusedError(event)

sys.addaudithook(refuse)
"""


def guard(folder: Path) -> tuple[Path, Path]:
    """A folder to put on PYTHONPATH, and the file that is there once a process tried to leave the machine."""
    folder.mkdir()
    told = folder / "told"
    (folder / "sitecustomize.py").write_text(_CODE.format(told=str(told)))
    return folder, told
