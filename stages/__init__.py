"""The pipeline: one module a DVC stage, each also a command line of its own."""

import sys
from pathlib import Path

import treespec

_beside = Path(__file__).resolve().parent.with_name("treespec")
if Path(treespec.__file__ or "").resolve().parent != _beside:
    found = str(Path(treespec.__file__ or "").parent)
    print(
        f"error: treespec: {found!r}; expected the package beside stages, {str(_beside)!r}", file=sys.stderr
    )
    sys.exit(2)
