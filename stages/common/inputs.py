"""What a measuring stage starts from, and what every metrics.json says of it.

tokenizer, prompts = inputs.prompts(params)
{**inputs.head(params, max_num_seqs=1), ..., **inputs.tail(probes)}
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from stages.common import gsm8k
from stages.common.engine import DEFAULT_BATCHED_TOKENS
from stages.common.environment import host_id
from stages.common.errors import UserError
from stages.common.params import Params


@dataclass(frozen=True)
class Inputs:
    """What the stages before have prepared."""

    manifest: dict[str, Any]  # results/models.json
    environment: dict[str, Any]  # results/environment.json
    rows: list[gsm8k.Row]
    dataset_source: str

    def path(self, role: str) -> str | None:
        """Folder of the target or of the draft; None where there is no such model."""
        return self.manifest[role]["path"] if role in self.manifest else None

    def prompts(self, params: Params) -> tuple[Any, list[list[int]]]:
        """The target's tokenizer and each question's token ids. UserError where an answer could not fit."""
        from transformers import AutoTokenizer

        trusted = params.models.target in params.models.trust_remote_code
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.path("target"), trust_remote_code=trusted)
            prompts = gsm8k.build_prompts(self.rows, tokenizer, params.dataset.prompt_format)
        except UserError:
            raise
        except Exception as error:  # the tokenizers library raises no other kind; templates raise Jinja's own
            line = f"{type(error).__name__}: {error}"
            raise UserError("models.target: tokenizer", line, "one that reads the questions") from error
        gsm8k.check_lengths(prompts, params.sampling.max_tokens, params.engine.max_model_len)
        gsm8k.check_tokens(prompts, self.manifest["target"]["vocab_size"])
        _check_whole_prompts(prompts, params)
        return tokenizer, prompts

    def head(self, params: Params, max_num_seqs: int) -> dict[str, Any]:
        """On what and of what it was measured; of several temperatures the first."""
        return {
            "device": self.environment["device_name"],
            "dtype": params.engine.dtype,
            "dataset_source": self.dataset_source,
            "prompt_format": params.dataset.prompt_format,
            "num_prompts": len(self.rows),
            "repeats": params.measure.repeats,
            "max_num_seqs": max_num_seqs,
            "temperature": params.sampling.temperature[0],
            "sampling": sampling_at(params, params.sampling.temperature[0]),
        }

    def tail(self, probes: dict[str, Any]) -> dict[str, Any]:
        """Where the figures come from; `probes` are of before and after."""
        return {
            "weight_bytes": self.manifest["target"]["weight_bytes"],
            "models": {role: model["reference"] for role, model in self.manifest.items()},
            "probe": probes,
            "environment": self.environment,
            "host": host_id(),
            "measured_at": probes["before"]["when"],
            "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }


def _check_whole_prompts(prompts: list[list[int]], params: Params) -> None:
    """Refuse what could cut a prompt in parts on cpu, where vLLM 0.15.0 dies of one with a seed of its own.

    It takes back the seed's last draw after every part, and a CPU's generator cannot (`_bookkeeping_sync`).
    """
    engine = params.engine
    if engine.device != "cpu" or not any(params.sampling.temperature):
        return
    needed = min(max(engine.max_num_seqs), len(prompts)) * max(map(len, prompts))
    if needed > (engine.max_num_batched_tokens or DEFAULT_BATCHED_TOKENS):
        expected = f"at least {needed} on cpu where sampling.temperature is above 0: every prompt in one step"
        raise UserError("engine.max_num_batched_tokens", engine.max_num_batched_tokens, expected)


def sampling_at(params: Params, temperature: float) -> dict[str, Any]:
    """The block `sampling` with the one temperature that some figures are of."""
    return params.sampling.model_dump() | {"temperature": temperature}
