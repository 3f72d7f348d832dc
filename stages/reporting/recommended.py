"""The params file that adopts the winner: profiles/recommended.yaml.

write_recommended(params, ArmName("chain", "k3", 1), Path("profiles/recommended.yaml"))
"""

from __future__ import annotations

from pathlib import Path

import yaml

from stages.common.files import write_text
from stages.common.params import AUTO, Params
from stages.reporting.load import ArmName

HEAD = """\
# Written by the stage report: the winner of the last run, {name}, as a whole params file.
#   make repro PROFILE=recommended
"""


def write_recommended(params: Params, best: ArmName | None, path: Path) -> Path | None:
    """`params` reduced to the best arm and its baseline. Without a winner a stale file goes."""
    if best is None:
        path.unlink(missing_ok=True)
        return None
    raw = params.model_dump(mode="json")
    raw["engine"]["max_num_seqs"] = [best.max_num_seqs]
    speculation = raw["speculation"]
    if best.arm == "chain":
        length = best.setting.removeprefix("k")
        speculation["chain"]["num_speculative_tokens"] = [length if length == AUTO else int(length)]
        speculation["tree"]["names"] = []
    else:  # a chain beside it, since there is no empty list of chains
        speculation["chain"]["num_speculative_tokens"] = speculation["chain"]["num_speculative_tokens"][:1]
        names = speculation["tree"]["names"]
        speculation["tree"]["names"] = [name for name in names if Path(name).stem == best.setting]
    write_text(path, HEAD.format(name=best.name) + yaml.safe_dump(raw, sort_keys=False, allow_unicode=True))
    return path
