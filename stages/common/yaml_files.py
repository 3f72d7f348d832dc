"""YAML files read strictly: one mapping, every key given once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from stages.common.errors import UserError


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML where a key given twice is an error rather than a silent winner."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise UserError(f"{node.start_mark.name}:{node.start_mark.line + 1}", key, "a key given once")
        return super().construct_mapping(node, deep)


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. UserError if it cannot be read, is no mapping or repeats a key."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError("params", str(path), f"a readable YAML file ({error})") from error
    try:
        loader = _UniqueKeyLoader(text)
        loader.name = str(path)
        raw = loader.get_single_data()
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # the latter: no date, too long or too deep
        raise UserError(str(path), " ".join(str(error).split()), "valid YAML") from error
    if not isinstance(raw, dict):
        raise UserError(str(path), type(raw).__name__, "a mapping of blocks")
    return raw
