"""The `distill` block of params.yaml."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from stages.common.errors import UserError

FromList = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)


def _as_float(value: object) -> object:
    """A whole number as the float that it stands for; one beyond all floats as infinity, which is refused."""
    if type(value) is not int:
        return value
    try:
        return float(value)
    except OverflowError:
        return math.inf


Number = Annotated[float, BeforeValidator(_as_float)]
PositiveInt = Annotated[int, Field(ge=1)]
Shape = Annotated[tuple[Annotated[int, Field(ge=0)], ...], FromList, Field(min_length=1)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Loss(Section):
    """KL(target || draft) at `kl_temperature`, plus the cross entropy of the target's argmax."""

    kl_temperature: Annotated[Number, Field(gt=0, le=10)] = 1.0
    hard_label_weight: Annotated[Number, Field(ge=0, le=10)] = 0.1


class Cost(Section):
    """What a draft is chosen by: predicted speedup at the best chain of at most `max_chain` tokens."""

    max_chain: Annotated[int, Field(ge=1, le=16)] = 8
    # Costs beside the weights that are read, as shares of one target step.
    draft_overhead: Annotated[Number, Field(ge=0)] = 0.05
    step_overhead: Annotated[Number, Field(ge=0)] = 0.1


class Distill(Section):
    """Which drafts are tried, on which text, for how long."""

    shapes: Annotated[
        tuple[Shape, ...], FromList, Field(min_length=1)
    ]  # one draft each: layers it starts from
    vocabulary: PositiveInt | None  # rows of the logit matrix a draft step reads; null: all
    on_policy_prompts: PositiveInt  # train questions that the target answers
    holdout: PositiveInt  # further train questions, for judging only
    sampled_answers: Annotated[int, Field(ge=0)]  # a question, beside the greedy one
    sampling_temperature: Annotated[Number, Field(gt=0, le=10)]
    max_new_tokens: PositiveInt
    generation_batch_size: PositiveInt
    steps: PositiveInt
    batch_size: PositiveInt
    sequence_length: Annotated[int, Field(ge=16)]
    learning_rate: Annotated[Number, Field(gt=0, lt=1)]
    warmup: Annotated[int, Field(ge=0)]
    evaluate_every: PositiveInt  # steps; a checkpoint is written then, too
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    device: Literal["cpu", "cuda"]
    loss: Loss = Loss()
    cost: Cost = Cost()

    @model_validator(mode="after")
    def _check(self) -> Distill:
        if len(set(self.shapes)) != len(self.shapes):
            raise UserError(
                "distill.shapes", [list(shape) for shape in self.shapes], "shapes that differ from each other"
            )
        if self.warmup >= self.steps:
            raise UserError("distill.warmup", self.warmup, f"less than distill.steps ({self.steps})")
        return self
