"""Fail the build of an image that does not hold what its labels say.

    python docker/verify.py vllm==0.15.0 torch==2.9.1 treespec==0.1.0

Imports each package (so that a missing shared library counts as missing), compares the public part of its
version, then loads and registers the vLLM plugin just as every engine will. Prints one line.
"""

from __future__ import annotations

import importlib
import sys

from packaging.version import Version

PLUGIN_GROUP = "vllm.general_plugins"


def differences(wanted: dict[str, str], found: dict[str, str]) -> list[str]:
    """One phrase for every package whose public version ("2.10.0" of "2.10.0+cpu") is not the wanted one."""
    return [
        f"{name} {found[name]} where {version} was to be"
        for name, version in wanted.items()
        if Version(found[name]).public != version
    ]


def register_plugin() -> str:
    """Register treespec the way vLLM does, and return the vLLM version that it is written for."""
    from vllm.plugins import load_plugins_by_group

    plugins = load_plugins_by_group(PLUGIN_GROUP)  # logs what fails to import, and goes on without it
    if "treespec" not in plugins:
        sys.exit(f"error: {PLUGIN_GROUP} has {sorted(plugins)} but no treespec that can be imported")
    plugins["treespec"]()
    return importlib.import_module("treespec.vllm_plugin").VLLM_VERSION


def main() -> None:
    wanted = dict(argument.split("==") for argument in sys.argv[1:])
    found = {name: importlib.import_module(name).__version__ for name in wanted}
    found["plugin"], wanted["plugin"] = register_plugin(), wanted["vllm"]
    if wrong := differences(wanted, found):
        sys.exit("error: " + "; ".join(wrong))
    print("verified: " + ", ".join(f"{name} {version}" for name, version in found.items()))


if __name__ == "__main__":
    main()
