"""Flags that the measuring stages share; what is left out comes from params.yaml.

flags = parser("stages.baseline", __doc__)
arguments = flags.parse_args()
params = read_params(arguments)
inputs = read_inputs(arguments, params, plan)
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from stages.common import gsm8k
from stages.common.engine import EnginePlan
from stages.common.environment import describe_machine
from stages.common.errors import Parser, UserError
from stages.common.files import read_object, require_room
from stages.common.inputs import Inputs
from stages.common.manifest import build_manifest
from stages.common.params import PARAMS_FILE, Params, load_params, override

DATA_FOLDER = Path("data/gsm8k")
RESULTS_FOLDER = Path("results")


def plain_parser(program: str, description: str) -> argparse.ArgumentParser:
    """A parser with the two flags that every stage has."""
    flags = Parser(
        prog=f"python -m {program}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flags.add_argument("--params", type=Path, default=PARAMS_FILE, help="params file (default: %(default)s)")
    flags.add_argument(
        "--results", type=Path, default=RESULTS_FOLDER, help="where to write (default: %(default)s)"
    )
    return flags


def parser(program: str, description: str) -> argparse.ArgumentParser:
    """A parser with the flags of every measuring stage."""
    flags = plain_parser(program, description)
    flags.add_argument(
        "--gsm8k",
        type=Path,
        default=DATA_FOLDER,
        metavar="DIR",
        help="folder that holds main/test-00000-of-00001.parquet (default: %(default)s)",
    )
    flags.add_argument(
        "--target-model",
        metavar="M",
        help="a reference as in params.yaml, a folder, or OWNER/NAME on the hub",
    )
    flags.add_argument("--tensor-parallel-size", type=int, metavar="N", help="GPUs that share the target")
    flags.add_argument("--max-num-seqs", type=int, metavar="N", help="sequences that run at once")
    flags.add_argument(
        "--num-prompts", type=int, metavar="N", help="the first N questions of GSM8K's test split"
    )
    flags.add_argument("--max-tokens", type=int, metavar="N", help="longest answer")
    flags.add_argument(
        "--temperature", type=float, metavar="T", help="0: greedy; above: sampled, in every arm alike"
    )
    flags.add_argument("--repeats", type=int, metavar="N", help="passes over the prompts")
    flags.add_argument(
        "--enforce-eager", action="store_const", const=True, help="neither torch.compile nor CUDA graphs"
    )
    return flags


def add_draft_flags(flags: argparse.ArgumentParser) -> None:
    """The flags of every stage that has a draft."""
    flags.add_argument(
        "--draft-model",
        metavar="D",
        help="like --target-model, or made of the target: prune:0,1,... (its layers) or distilled:DIR",
    )
    flags.add_argument(
        "--draft-tensor-parallel-size", type=int, metavar="N", help="1 or --tensor-parallel-size"
    )


def draft_values(arguments: argparse.Namespace) -> dict[str, Any]:
    """What they replace in params, for `read_params`."""
    return {
        "models.draft": as_reference(arguments.draft_model),
        "engine.draft_tensor_parallel_size": arguments.draft_tensor_parallel_size,
    }


def read_params(arguments: argparse.Namespace, more: dict[str, Any] | None = None) -> Params:
    """params.yaml with the given flags in place of its values, checked as a whole."""
    size = arguments.max_num_seqs
    return override(
        load_params(arguments.params),
        {
            "models.target": as_reference(arguments.target_model),
            "engine.tensor_parallel_size": arguments.tensor_parallel_size,
            "engine.max_num_seqs": None if size is None else [size],
            "engine.enforce_eager": arguments.enforce_eager,
            "dataset.num_prompts": arguments.num_prompts,
            "sampling.max_tokens": arguments.max_tokens,
            "sampling.temperature": arguments.temperature,
            "measure.repeats": arguments.repeats,
            **(more or {}),
        },
    )


def read_inputs(
    arguments: argparse.Namespace, params: Params, plan: EnginePlan | None, with_draft: bool = True
) -> Inputs:
    """What the stages before have written; models that they have not prepared are resolved here and now.

    UserError for whatever `plan`'s engine would stumble over, and where there is no room for results. The
    machine is described anew: results/environment.json may have come with a clone, from another one.
    """
    require_room(arguments.results)
    rows = gsm8k.load_rows(arguments.gsm8k, params.dataset.num_prompts)
    manifest_file = arguments.results / "models.json"
    manifest = {}
    if manifest_file.is_file():
        manifest = read_object(manifest_file, "what stages.fetch_models writes; run it again")
    for role in ("target", "draft") if with_draft else ("target",):
        if not _is_prepared(manifest.get(role), getattr(params.models, role)):
            manifest = build_manifest(params.models, params.engine, with_draft=with_draft)
    source = gsm8k.dataset_source(arguments.gsm8k)
    inputs = Inputs(manifest, describe_machine(params.engine.device), rows, source)
    if plan is not None:
        plan.check_models(Path(inputs.path("target")), inputs.path("draft"))
    return inputs


def _is_prepared(entry: Any, reference: str) -> bool:
    """Whether an entry of the manifest is whole and of the model that is asked for, which is still there."""
    needed = {"reference", "path", "vocab_size", "weight_bytes", "pass_bytes"}
    if not isinstance(entry, dict) or not needed <= entry.keys() or entry["reference"] != reference:
        return False
    return Path(str(entry["path"])).is_dir()


def only_batch_size(params: Params) -> int:
    """The one max_num_seqs of a command line run. UserError where params.yaml names several."""
    sizes = params.engine.max_num_seqs
    if len(sizes) > 1:
        raise UserError("--max-num-seqs", "(absent)", f"one of {list(sizes)}: params.yaml names several")
    return sizes[0]


def as_reference(model: str | None) -> str | None:
    """A model as people write it, as a reference of params.yaml."""
    if model is None or model.partition(":")[0] in ("hf", "path", "pypi", "prune", "distilled"):
        return model
    if Path(model).is_dir():
        return f"path:{model}"
    return f"hf:{model}@main" if model.count("/") == 1 else model
