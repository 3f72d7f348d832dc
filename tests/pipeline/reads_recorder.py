"""Part of a sitecustomize: notes which of the project's files a stage that DVC runs opens or imports.

RECORD names the folder; a file a stage, a path a line, relative to the project. What libraries in C read,
such as weights, does not show.
"""

import atexit
import os
import sys


def _record() -> None:
    opened: set[str] = set()

    def hook(event: str, arguments: tuple) -> None:
        if event == "open" and isinstance(arguments[0], str):
            opened.add(arguments[0])

    def write() -> None:
        imported = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
        root = os.getcwd() + os.sep
        paths = {os.path.abspath(path) for path in list(opened) + list(imported) if path}
        mine = sorted(
            path.removeprefix(root) for path in paths if path.startswith(root) and os.path.isfile(path)
        )
        name = os.environ["DVC_STAGE"].replace(os.sep, "_")
        with open(os.path.join(os.environ["RECORD"], name), "w", encoding="utf-8") as stream:
            stream.write("\n".join(mine))

    sys.addaudithook(hook)
    atexit.register(write)


if "DVC_STAGE" in os.environ and "RECORD" in os.environ:
    _record()
