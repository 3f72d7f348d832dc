"""Make a small draft out of the target itself: the answer to "I have no draft for my model".

The target (any Hugging Face causal LM of the Llama or Qwen2 family) answers GSM8K train questions; candidates
of a few of its own layers learn its distribution over those answers; the one with the best predicted speedup
is written. Tokenizer, embedding and logit matrix stay the target's, so only layers and norm are stored.

    python -m stages.distill_draft                                    # params.yaml, block `distill`
    python -m stages.distill_draft --target-model path:my-model --device cuda --out models/my-draft

Then use it: `models.draft: distilled:OUT` in params.yaml. A draft step reads `distill.vocabulary` rows of
the logit matrix; to change that number alone, run it again: training is found in --work and only judged anew.

Killed? Start it again with the same arguments: answers and training go on where they stopped, from --work.
It never trains on GSM8K's test split, and refuses data that holds a question of it.
Writes OUT: model.safetensors, config.json, draft_vocabulary.json, distill.json, README.md.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.common.errors import Parser, UserError, run_cli
from stages.common.params import PARAMS_FILE, Params, load_params, override
from stages.common.references import Model, resolve

if TYPE_CHECKING:
    from stages.distillation.pipeline import Questions

TEST_FILE = Path("data/gsm8k/main/test-00000-of-00001.parquet")
MODELS_FOLDER = Path("models")


def prepare_questions(params: Params, target: Model, licence: str, command: str) -> Questions:
    """The tokenised training and held-out prompts, in the format that is measured later."""
    from transformers import AutoTokenizer

    from stages.common.gsm8k import build_prompts
    from stages.distillation.pipeline import Questions
    from stages.distillation.questions import load_train_rows, split_rows

    settings = params.distill
    rows, source = load_train_rows(params.dataset.sources, TEST_FILE)
    parts = split_rows(rows, settings.on_policy_prompts, settings.holdout, settings.seed)
    tokenizer = AutoTokenizer.from_pretrained(target.path)
    training, held_out = (build_prompts(part, tokenizer, params.dataset.prompt_format) for part in parts)
    return Questions(training, held_out, target.reference, licence, source, command)


def summary(record: dict[str, Any]) -> str:
    """What was tried and what was kept, for the terminal."""
    lines = ["layers from      logit rows   agreement   best chain   predicted speedup"]
    for candidate in record["candidates"]:
        kept = "  <- kept" if candidate == record["chosen"] else ""
        lines.append(
            f"{candidate['layers_from']!s:15}{candidate['num_rows']:12}{candidate['greedy_agreement']:12.1%}"
            f"{candidate['best_chain']:13}{candidate['predicted_speedup']:19.2f}x{kept}"
        )
    return "\n".join(lines)


def _parse() -> argparse.Namespace:
    parser = Parser(
        prog="python -m stages.distill_draft",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    reference = "hf:OWNER/NAME@REVISION, path:DIR or pypi:NAME==VERSION"
    parser.add_argument("--params", type=Path, default=PARAMS_FILE, help="params file (default: %(default)s)")
    parser.add_argument("--target-model", metavar="REF", help=reference)
    parser.add_argument("--device", choices=["cpu", "cuda"])
    parser.add_argument("--steps", type=int, help="training steps")
    parser.add_argument("--max-minutes", type=float, help="stop training by then, keeping the best weights")
    parser.add_argument("--licence", default="see its model card", help="the target's, for the model card")
    parser.add_argument("--models", type=Path, default=MODELS_FOLDER, help="folder of converted models")
    parser.add_argument("--work", type=Path, default=Path("build/distill"), help="answers and checkpoints")
    parser.add_argument(
        "--out", type=Path, default=MODELS_FOLDER / "draft", help="the draft (default: %(default)s)"
    )
    return parser.parse_args()


def main() -> None:
    started, arguments = time.monotonic(), _parse()
    params = load_params(arguments.params)
    if params.distill is None:
        raise UserError("distill", "(absent)", f"a block of {arguments.params}: see params.yaml")
    flags = {
        "models.target": arguments.target_model,
        "distill.device": arguments.device,
        "distill.steps": arguments.steps,
    }
    params = override(params, flags)
    target = resolve(
        params.models.target,
        arguments.models,
        params.models.sha256,
        params.models.target in params.models.trust_remote_code,
    )
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with it
    from stages.distillation.pipeline import distill  # torch takes seconds to import; mistakes come first

    command = shlex.join(["python", "-m", "stages.distill_draft", *sys.argv[1:]])
    questions = prepare_questions(params, target, arguments.licence, command)
    deadline = arguments.max_minutes and started + 60 * arguments.max_minutes
    record = distill(params.distill, target.path, questions, arguments.work, arguments.out, deadline)
    print(summary(record))
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    run_cli(main)
