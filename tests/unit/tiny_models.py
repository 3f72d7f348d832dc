"""Small models made on the spot: random Llamas, their tokenizer, a draft, a GGUF and a wheel of one."""

from __future__ import annotations

import zipfile
from pathlib import Path

VOCAB_SIZE = 128
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}: {{ message['content'] }}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}"
)


def make_tokenizer(chat_template: str | None = TEMPLATE, swap: bool = False):
    """Printable ASCII and two special tokens in 128 ids; `swap` exchanges the ids of two letters."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # A byte-level vocabulary writes a space as Ġ and a line's end as Ċ.
    tokens = ["<|im_start|>", "<|im_end|>", "Ġ", "Ċ", *(chr(code) for code in range(33, 127)), "ab"]
    tokens += [f"<unused{index}>" for index in range(VOCAB_SIZE - len(tokens))]
    if swap:
        first, second = tokens.index("a"), tokens.index("b")
        tokens[first], tokens[second] = tokens[second], tokens[first]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, [("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", chat_template=chat_template
    )


def make_llama(folder: Path, num_layers: int = 2, seed: int = 0, swap: bool = False, **config):
    """Write a random Llama with its tokenizer; returns the model."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "tie_word_embeddings": True,
    }
    model = LlamaForCausalLM(LlamaConfig(**{**sizes, **config})).eval()
    model.save_pretrained(folder)
    make_tokenizer(swap=swap).save_pretrained(folder)
    return model


def make_draft(folder: Path, target_folder: Path, layer: int = 1) -> dict:
    """Distil `layer` of the model in `target_folder`, into a draft, in two steps; returns its record."""
    from stages.distillation.pipeline import Questions, distill
    from stages.distillation.settings import Distill

    settings = Distill(
        shapes=((layer,),),
        vocabulary=2,
        on_policy_prompts=3,
        holdout=1,
        sampled_answers=1,  # greedy text of random weights repeats itself
        sampling_temperature=1.0,
        max_new_tokens=40,
        generation_batch_size=4,
        steps=2,
        batch_size=2,
        sequence_length=64,
        learning_rate=0.01,
        warmup=1,
        evaluate_every=2,
        seed=0,
        device="cpu",
    )
    questions = Questions([[5, 6], [7, 8], [9]], [[10, 11]], "tiny", "Apache-2.0", "here", "python -m ...")
    return distill(settings, target_folder, questions, folder.with_name(f"{folder.name}-work"), folder)


def make_gguf(path: Path, model, pre: str = "gpt-2") -> None:
    """Write `model` as an F32 GGUF in llama.cpp's layout, with the tiny tokenizer."""
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    tokens = make_tokenizer().convert_ids_to_tokens(range(VOCAB_SIZE))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, *[1] * (VOCAB_SIZE - 2)])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template(TEMPLATE)
    for name, weight in model.state_dict().items():
        if name != "lm_head.weight":
            writer.add_tensor(_gguf_name(name), _interleaved(name, weight, config).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _gguf_name(name: str) -> str:
    for long, short in {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "model.layers": "blk",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "input_layernorm": "attn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }.items():
        name = name.replace(long, short)
    return name


def _interleaved(name: str, weight, config):
    """llama.cpp's order of the rotated rows: first of the first half, first of the second half, second ..."""
    if "q_proj" not in name and "k_proj" not in name:
        return weight
    head_size = config.hidden_size // config.num_attention_heads
    rows = []
    for start in range(0, weight.shape[0], head_size):
        for pair in range(head_size // 2):
            rows += [start + pair, start + pair + head_size // 2]
    return weight[rows]


def make_wheel(folder: Path, gguf_file: Path, name: str = "tiny_gguf", version: str = "0.1.0") -> Path:
    """A wheel that carries `gguf_file`, as pip wants to see it."""
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(gguf_file, f"{name}/model.gguf")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return wheel
