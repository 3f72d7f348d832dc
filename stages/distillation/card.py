"""The model card of a distilled draft, written from its record: no number in it is typed by hand."""

from __future__ import annotations

from typing import Any

_CARD = """\
# A draft for {target}

{num_layers} layers, distilled from the target itself for speculative decoding. This folder holds only
what differs from the target ({size_mb:.1f} MB in bfloat16): tokenizer, embedding and logit matrix are the
target's.

## Use

`models.draft: distilled:DIR` in params.yaml, DIR being this folder: `python -m stages.fetch_models` writes
the complete Hugging Face model. It refuses any other target.{vocabulary}

## Held-out acceptance

Greedy, on the target's answers to {held_out} GSM8K train questions that were not trained on, with {num_rows}
logit rows: the draft proposes the target's next token in **{agreement:.1%}** of the positions. (Before
training, with all rows: {before:.1%}.)

| speculative tokens | {chains} |
|---|{rule}
| mean acceptance length, bonus token counted | {lengths} |

## Choice of the shape

| starts from layers | logit rows | greedy agreement | cost ratio | best chain | predicted speedup |
|---|---|---|---|---|---|
{candidates}

Each row is judged on the same {held_out} questions. Cost ratio: the bytes a draft step reads (layers and
logit rows) over those a target step reads. Speedup of a chain of k tokens: its mean acceptance length over
1 + {step_overhead} + k (cost ratio + {draft_overhead}) target steps;
best chain is the k of at most {max_chain} for which that is largest. Kept is the shape with the largest
predicted speedup at `distill.vocabulary` rows, which need not be the one that is accepted most: a layer
more must pay for itself.

## Training

- Data: {num_texts} answers of the target ({rounds}) to {prompts} questions of the GSM8K **train** split
  ({source}).
  The test split was not used; nor were the reference answers.
- Loss: KL of the target's distribution to the draft's at temperature {kl_temperature}, plus
  {hard_label_weight} times the cross entropy of the target's most likely token; answer tokens only.
- {steps} steps of {batch_size} answers, AdamW, learning rate {learning_rate}, {warmup} warm-up steps, cosine,
  seed {seed}, on {device_name}, torch {torch}; the weights are those of step {best_step}.
- Command, with the settings of `distill.json` as block `distill` of params.yaml:
  `{command}`

## Limits

- It knows the target's answers to GSM8K questions, of at most {max_new_tokens} tokens. Acceptance on
  other text was not measured. Whatever it proposes, verification keeps the output the target's.
- The predicted speedups come from a cost model for one sequence at a time, not from a clock.
- The held-out questions also picked the step whose weights were kept.
- {repeatable}

## Licence

The layers derive from {target}, so its licence ({licence}) holds. GSM8K (MIT) gave the questions;
no text of it is in this folder.
"""


_ON_CPU = "The command gives these weights again, to the bit, on the same kind of device."
_ON_CUDA = (
    "The command repeats data, order and settings, but CUDA's attention kernels sum in no fixed order:\n"
    "  another run's weights are close to these, not equal."
)


def model_card(record: dict[str, Any]) -> str:
    """README.md for the record of distill.json."""
    settings, data, chosen = record["settings"], record["data"], record["chosen"]
    repeatable = _ON_CUDA if settings["device"] == "cuda" else _ON_CPU
    chains, history = chosen["mean_acceptance_length"], chosen["history"]
    return _CARD.format(
        **settings["loss"],
        **settings["cost"],
        **{key: settings[key] for key in ("batch_size", "learning_rate", "warmup", "seed", "max_new_tokens")},
        **{key: record["environment"][key] for key in ("device_name", "torch")},
        target=record["target"]["reference"],
        licence=record["target"]["licence"],
        command=record["command"],
        num_layers=len(chosen["layers_from"]),
        size_mb=chosen["delta_bytes"] / 1e6,
        vocabulary=_vocabulary_note(chosen["num_rows"]) if settings["vocabulary"] else "",
        num_rows=chosen["num_rows"],
        agreement=chosen["greedy_agreement"],
        before=history[0]["greedy_agreement"],
        chains=" | ".join(chains),
        rule="---|" * len(chains),
        lengths=" | ".join(f"{length:.2f}" for length in chains.values()),
        candidates=_candidate_rows(record),
        held_out=data["held_out"],
        num_texts=data["texts"],
        source=data["source"],
        prompts=settings["on_policy_prompts"],
        repeatable=repeatable,
        rounds=_rounds(settings["sampled_answers"], settings["sampling_temperature"]),
        steps=history[-1]["step"],
        best_step=max(history, key=lambda row: row["mean_acceptance_length"])["step"],
    )


def _candidate_rows(record: dict[str, Any]) -> str:
    """A line a shape and vocabulary, what was kept in bold."""
    kept = record["chosen"]["layers_from"], record["chosen"]["num_rows"]
    lines = []
    for candidate in record["candidates"]:
        for judged in candidate["by_vocabulary"]:
            cells = [
                str(candidate["layers_from"]),
                str(judged["num_rows"]),
                f"{judged['greedy_agreement']:.1%}",
                f"{judged['cost_ratio']:.3f}",
                str(judged["best_chain"]),
                f"{judged['predicted_speedup']:.2f}x",
            ]
            if (candidate["layers_from"], judged["num_rows"]) == kept:
                cells = [f"**{cell}**" for cell in cells]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _vocabulary_note(num_rows: int) -> str:
    return (
        f"\n\nA draft step reads {num_rows} rows of the logit matrix, those of the tokens that the target's\n"
        "answers use most (`draft_vocabulary.json`)."
    )


def _rounds(sampled: int, temperature: float) -> str:
    return f"greedy and {sampled} sampled at temperature {temperature} each" if sampled else "greedy"
