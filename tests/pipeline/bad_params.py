"""Rows of the table of bad input: params files and flags."""

from __future__ import annotations

from mistake import BASELINE, CHAIN, TREE, Mistake

K = "speculation.chain.num_speculative_tokens"


def _params(line: str, command: tuple[str, ...] = BASELINE, **fields) -> Mistake:
    """One field of params.yaml; its dots are written as two underlines."""
    return Mistake(command, line, {name.replace("__", "."): value for name, value in fields.items()})


def _text(line: str, change) -> Mistake:
    return Mistake(BASELINE, line, text=change)


FILES = {
    "absent": Mistake((*BASELINE, "--params", "no.yaml"), "params: 'no.yaml'; expected a readable YAML file"),
    "a folder": Mistake((*BASELINE, "--params", "local"), "params: 'local'; expected a readable YAML file"),
    "empty": _text("params.yaml: 'NoneType'; expected a mapping of blocks", lambda _: ""),
    "a list": _text("params.yaml: 'list'; expected a mapping of blocks", lambda _: "- engine\n- models\n"),
    "torn": _text("params.yaml: '...'; expected valid YAML", lambda text: text[:200] + "\n  x: [1, 2"),
    "a tab": _text("params.yaml: '...'; expected valid YAML", lambda text: text + "more:\n\tx: 1\n"),
    "not UTF-8": _text("params: 'params.yaml'; expected a readable YAML file", lambda _: b"engine: \xff\xfe"),
    "a control character": _text("params.yaml: '...'; expected valid YAML", lambda text: text + "x: \x07\n"),
    "a Python object": _text(
        "params.yaml: '...python/object/apply:os.system...'; expected valid YAML",
        lambda text: text + "x: !!python/object/apply:os.system [touch hacked]\n",
    ),
    "nested beyond sense": _text(
        "params.yaml: '...'; expected valid YAML", lambda text: "x: " + "[" * 50_000
    ),
    "an endless number": _text("params.yaml: '...'; expected valid YAML", lambda text: "x: " + "9" * 5_000),
    "no such day": _text("params.yaml: '...'; expected valid YAML", lambda text: "x: 2024-02-31\n"),
    "growing aliases": _text(
        "x: ...; expected no such key",
        lambda text: (
            text
            + "x:\n- &a [1, 1, 1, 1, 1, 1, 1, 1]\n"
            + "".join(
                f"- &{name} [{', '.join([f'*{before}'] * 8)}]\n"
                for before, name in zip("abcdefghijkl", "bcdefghijklm", strict=True)
            )
        ),
    ),
    "a block twice": _text("params.yaml:1: 'dataset'; expected a key given once", lambda text: text * 2),
    "a key twice": _text(
        "params.yaml:...: 'seed'; expected a key given once",
        lambda text: text.replace("  top_p:", "  seed: 1\n  top_p:"),
    ),
    "a key twice on a line": _text(
        "params.yaml:...: 'a'; expected a key given once", lambda text: text + "x: {a: 1, b: 2, a: 3}\n"
    ),
    "a block missing": _text(
        "sampling: '(absent)'; expected a value", lambda text: text.replace("sampling:", "calibration2:")
    ),
}
TYPES = {
    "unknown block": _params("typo: 1; expected no such key", typo=1),
    "unknown key": _params("engine.gpus: 4; expected no such key", engine__gpus=4),
    "a block that is a list": _params("engine: []; expected a block of keys", engine=[]),
    "null": _params("models.target: None; expected text", models__target=None),
    "text for a number": _params(
        "sampling.max_tokens: 'many'; expected a whole number", sampling__max_tokens="many"
    ),
    "a number in quotes": _params("measure.repeats: '4'; expected a whole number", measure__repeats="4"),
    "a fraction": _params("measure.repeats: 1.0; expected a whole number", measure__repeats=1.0),
    "true for a number": _params("measure.repeats: True; expected a whole number", measure__repeats=True),
    "a word for true": _params(
        "engine.enforce_eager: 'on'; expected true or false", engine__enforce_eager="on"
    ),
    "one for a list": _params("engine.max_num_seqs: 4; expected a list", engine__max_num_seqs=4),
    "an empty list": _params(
        "engine.max_num_seqs: []; expected a list that is not empty", engine__max_num_seqs=[]
    ),
    "the same twice": _params(
        "engine.max_num_seqs: [1, 1]; expected values that differ", engine__max_num_seqs=[1, 1]
    ),
    "no such dtype": _params(
        "engine.dtype: 'int8'; expected 'bfloat16', 'float16' or 'float32'", engine__dtype="int8"
    ),
    "no such device": _params("engine.device: 'tpu'; expected 'cpu' or 'cuda'", engine__device="tpu"),
    "no reference": _params("models.target: 'gpt'; expected hf:OWNER/NAME@REVISION", models__target="gpt"),
    "no revision": _params("models.draft: 'hf:a/b'; expected hf:OWNER/NAME@REVISION", models__draft="hf:a/b"),
    "a draft as target": _params(
        "models.target: 'prune:0'; expected a whole model", models__target="prune:0"
    ),
    "no digest": _params(
        "models.sha256.x: 'abc'; expected 64 hexadecimal digits", models__sha256={"x": "abc"}
    ),
    "no source": _params("dataset.sources.0: 'ftp://x'; expected path:DIR", dataset__sources=["ftp://x"]),
}
NUMBERS = {
    "NaN": _params("sampling.temperature: nan; expected a finite", sampling__temperature=float("nan")),
    "infinity": _params("engine.kv_cache_gib: inf; expected a finite", engine__kv_cache_gib=float("inf")),
    "a number beyond floats": _params(
        "engine.kv_cache_gib: inf; expected a finite number", engine__kv_cache_gib=10**400
    ),
    "below zero": _params("sampling.temperature: -1; expected at least 0", sampling__temperature=-1),
    "zero": _params("dataset.num_prompts: 0; expected at least 1", dataset__num_prompts=0),
    "more questions than there are": _params(
        "dataset.num_prompts: 5000; expected at most 1319", dataset__num_prompts=5000
    ),
    "a huge batch": _params(
        f"engine.max_num_seqs.0: {10**15}; expected at most 1000000", engine__max_num_seqs=[10**15]
    ),
    "a huge context": _params(
        f"engine.max_model_len: {10**12}; expected at most", engine__max_model_len=10**12
    ),
    "a huge seed": _params(f"sampling.seed: {2**40}; expected less than 4294967296", sampling__seed=2**40),
    "a huge top_k": _params(f"sampling.top_k: {10**12}; expected less than", sampling__top_k=10**12),
    "a long chain": _params(f"{K}.0: 513; expected at most 64", **{K: [513]}),
    "tokens in thousands": _params(
        "engine.max_model_len: '8k'; expected a whole", engine__max_model_len="8k"
    ),
    "a size with a unit": _params(
        "engine.kv_cache_gib: '4GiB'; expected a number", engine__kv_cache_gib="4GiB"
    ),
    "a size in bytes": _params(
        "engine.kv_cache_gib: 4294967296; expected at most 4096", engine__kv_cache_gib=4294967296
    ),
    "a share in percent": _params(
        "engine.gpu_memory_utilization: 90; expected at most 1", engine__gpu_memory_utilization=90
    ),
    "a confidence in percent": _params("report.confidence: 95; expected less than 1", report__confidence=95),
}
COMBINATIONS = {
    "an answer longer than the context": _params(
        "sampling.max_tokens: 1024; expected less than engine.max_model_len (1024)", sampling__max_tokens=1024
    ),
    "min_p": _params("sampling.min_p: 0.1; expected 0: vLLM 0.15.0 refuses", sampling__min_p=0.1),
    "pipeline on cpu": _params(
        "engine.pipeline_parallel_size: 2; expected 1 on cpu", engine__pipeline_parallel_size=2
    ),
    "ray on cpu": _params(
        "engine.distributed_executor_backend: 'ray'; expected mp on cpu",
        engine__distributed_executor_backend="ray",
    ),
    "stock on cpu": Mistake(
        (*CHAIN, "--implementation", "stock"), "speculation.implementation: 'stock'; expected"
    ),
    "draft TP": Mistake(
        (*CHAIN, "--tensor-parallel-size", "4", "--draft-tensor-parallel-size", "2"),
        "engine.draft_tensor_parallel_size: 2; expected 1 or engine.tensor_parallel_size (4)",
    ),
    "several k": _params(
        "--num-speculative-tokens: '(absent)'; expected one of [1, 2]", CHAIN[:3], **{K: [1, 2]}
    ),
    "several batches": _params(
        "--max-num-seqs: '(absent)'; expected one of [1, 4]", ("baseline",), engine__max_num_seqs=[1, 4]
    ),
    "a sampled prompt in parts": _params(
        "engine.max_num_batched_tokens: 64; expected at least ... on cpu where sampling.temp",
        engine__max_num_batched_tokens=64,
    ),
    "a step smaller than the trees": _params(
        "engine.max_num_batched_tokens: 7; expected at least 8: 2 sequences x (3 + 1)",
        TREE,
        engine__max_num_batched_tokens=7,
    ),
}
FLAGS = {
    "wrong type": Mistake(
        (*BASELINE, "--num-prompts", "all"), "argument --num-prompts: invalid int value: 'all'"
    ),
    "no such flag": Mistake((*BASELINE, "--use-tree"), "unrecognized arguments: --use-tree; see --help"),
    "no prompts": Mistake((*BASELINE, "--num-prompts", "0"), "dataset.num_prompts: 0; expected at least 1"),
    "k below 1": Mistake((*CHAIN[:-1], "0"), f"{K}.0: 0; expected at least 1"),
    "k in words": Mistake((*CHAIN[:-1], "two"), "argument --num-speculative-tokens: 'two': expected a whole"),
    "no level": Mistake(
        (*TREE, "--num-speculative-tokens", "0"), "--num-speculative-tokens: 0; expected at least 1"
    ),
    "a batch of nothing": Mistake(
        ("grow_tree", "--tree", "fork", "--max-num-seqs", "0"), "--max-num-seqs: 0; exp"
    ),
    "environment": Mistake(("environment", "--device", "tpu"), "argument --device: invalid choice: 'tpu'"),
    "fetch_models": Mistake(("fetch_models", "--bogus"), "unrecognized arguments: --bogus; see --help"),
    "fetch_gsm8k": Mistake(
        ("fetch_gsm8k", "--source", "ftp:x"), "dataset.sources.0: 'ftp:x'; expected path:DIR"
    ),
    "report": Mistake(("report", "--resutls", "x"), "unrecognized arguments: --resutls x; see --help"),
    "terminal codes": Mistake(
        (*BASELINE, "--tree\x1b[2J\n"), "unrecognized arguments: --tree [2J ; see --help"
    ),
}
BAD_PARAMS = {
    f"{kind}: {name}": mistake
    for kind, rows in {
        "file": FILES,
        "type": TYPES,
        "number": NUMBERS,
        "combination": COMBINATIONS,
        "flag": FLAGS,
    }.items()
    for name, mistake in rows.items()
}
