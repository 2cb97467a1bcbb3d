#!/usr/bin/env python3
"""Makes the tiny-* folders beside this file: random models and what transformers answers for them.

Needs torch, transformers, safetensors and numpy; tests do not run it. Weights come from NumPy's
PCG64 with a fixed seed. The answers are computed from the saved folder, in fp32, without a cache.
"""

import json
import pathlib
import sys

import numpy as np
import safetensors.torch
import torch
import transformers

ROOT = pathlib.Path(__file__).resolve().parent
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

# Greedy steps closer than this are not worth an argument about rounding: another seed is tried.
MIN_GAP = 1e-3
# Nor are continuations that repeat one id.
MIN_DISTINCT = 4  # ids in every continuation

OPT = {
    "architectures": ["OPTForCausalLM"],
    "model_type": "opt",
    "bos_token_id": 2,
    "eos_token_id": 2,
    "pad_token_id": 1,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "layerdrop": 0.0,
}
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "bos_token_id": 0,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
}
MISTRAL = LLAMA | {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}

# name: config.json, lengths of the prompts, ids to generate, length of the eight NLL windows.
MODELS = {
    "tiny-opt-post-norm": (
        OPT
        | {
            "activation_function": "relu",
            "do_layer_norm_before": False,
            "hidden_size": 40,
            "word_embed_proj_dim": 24,
            "num_attention_heads": 4,
            "num_hidden_layers": 3,
            "ffn_dim": 80,
            "max_position_embeddings": 96,
            "vocab_size": 130,
            "torch_dtype": "float16",
        },
        [1, 3, 17, 30, 64],
        32,
        32,
    ),
    "tiny-opt-bare": (
        OPT
        | {
            "activation_function": "gelu",
            "do_layer_norm_before": True,
            "_remove_final_layer_norm": True,
            "enable_bias": False,
            "layer_norm_elementwise_affine": False,
            "tie_word_embeddings": False,
            "hidden_size": 32,
            "word_embed_proj_dim": 32,
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "ffn_dim": 64,
            "max_position_embeddings": 96,
            "vocab_size": 131,
            "torch_dtype": "float32",
        },
        [2, 9, 16, 33, 64],
        32,
        32,
    ),
    "tiny-llama3": (
        LLAMA
        | {
            "hidden_size": 48,
            "head_dim": 12,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "num_hidden_layers": 3,
            "intermediate_size": 80,
            "max_position_embeddings": 256,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
            "tie_word_embeddings": True,
            "vocab_size": 144,
            "dtype": "bfloat16",
        },
        [4, 15, 31, 65, 120],
        32,
        64,
    ),
    "tiny-llama-linear": (
        LLAMA
        | {
            "hidden_size": 40,
            "head_dim": 16,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "num_hidden_layers": 2,
            "intermediate_size": 72,
            "attention_bias": True,
            "mlp_bias": True,
            "max_position_embeddings": 256,
            "rope_theta": 10000.0,
            "rope_scaling": {"type": "linear", "factor": 4.0},
            "tie_word_embeddings": False,
            "vocab_size": 131,
            "torch_dtype": "float16",
        },
        [1, 8, 20, 40, 90],
        32,
        48,
    ),
    "tiny-mistral": (
        MISTRAL
        | {
            "hidden_size": 32,
            "head_dim": 8,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "num_hidden_layers": 3,
            "intermediate_size": 64,
            "max_position_embeddings": 128,
            "sliding_window": 11,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "vocab_size": 129,
            "torch_dtype": "float16",
        },
        [5, 12, 24, 47, 80],
        32,
        40,
    ),
    "tiny-vocabulary": (
        LLAMA
        | {
            "hidden_size": 32,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "num_hidden_layers": 2,
            "intermediate_size": 64,
            "max_position_embeddings": 64,
            "tie_word_embeddings": True,
            "vocab_size": 9,
            "torch_dtype": "float16",
        },
        [1, 6, 13, 30],
        24,
        24,
    ),
}


def fill(model, rng):
    """Draws all weights so that activations keep their size and no term is negligible."""
    for name, parameter in model.named_parameters():
        shape = tuple(parameter.shape)
        if name.endswith("bias"):
            values = 0.1 * rng.standard_normal(shape)
        elif "norm" in name:
            values = 1.0 + 0.25 * rng.standard_normal(shape)
        elif "lm_head" in name:
            # Without a final norm the hidden states are larger.
            bare = getattr(model.config, "_remove_final_layer_norm", False)
            values = (1.0 if bare else 3.0) / shape[1] ** 0.5 * rng.standard_normal(shape)
        elif "embed_positions" in name:
            values = 0.5 * rng.standard_normal(shape)
        elif "embed_tokens" in name:
            # Where the head is tied: small beside what the layers add, or each id would follow
            # itself.
            values = (0.4 if model.config.tie_word_embeddings else 1.0) * rng.standard_normal(shape)
        else:
            values = 2.0 / shape[1] ** 0.5 * rng.standard_normal(shape)
            if "fc2" in name:
                # Behind a ReLU: else its mean would push every token in the same direction.
                values -= values.mean(axis=1, keepdims=True)
        parameter.data = torch.from_numpy(values.astype(np.float32))
    model.tie_weights()


def write_model(path, config, rng):
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    loaded = transformers.AutoConfig.from_pretrained(path)
    model = transformers.AutoModelForCausalLM.from_config(loaded)
    fill(model, rng)
    dtype = DTYPES[config.get("dtype") or config["torch_dtype"]]
    tied = model.config.tie_word_embeddings
    tensors = {
        name: tensor.to(dtype).contiguous()
        for name, tensor in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }
    safetensors.torch.save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def logits_of(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids]), use_cache=False).logits[0]


def answer(model, prompt, num_new):
    ids = list(prompt)
    first = None
    greedy, gaps = [], []
    for _ in range(num_new):
        logits = logits_of(model, ids)[-1]
        if first is None:
            first = logits.numpy()
        top = torch.topk(logits, 2)
        greedy.append(int(top.indices[0]))
        gaps.append(round(float(top.values[0] - top.values[1]), 6))
        ids.append(greedy[-1])
    return {"ids": prompt, "greedy": greedy, "gap": gaps}, first


def nll_of(model, ids, window):
    per_window = []
    for begin in range(0, len(ids), window):
        part = ids[begin : begin + window]
        log_probs = torch.log_softmax(logits_of(model, part).double(), -1)
        picked = log_probs[range(window - 1), part[1:]]
        per_window.append(float(-picked.mean()))
    return {"ids": ids, "mean_nll": float(np.mean(per_window)), "per_window": per_window}


def make(name, seed):
    """Returns why the seed will not do, or nothing."""
    config, lengths, num_new, window = MODELS[name]
    rng = np.random.default_rng(seed)
    path = ROOT / name
    write_model(path, config, rng)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    vocab = config["vocab_size"]
    prompts, rows = [], []
    for length in lengths:
        prompt, first = answer(model, rng.integers(0, vocab, length).tolist(), num_new)
        prompts.append(prompt)
        rows.append(first)
    gap = min(min(prompt["gap"]) for prompt in prompts)
    distinct = min(len(set(prompt["greedy"])) for prompt in prompts)
    if gap < MIN_GAP:
        return f"smallest gap {gap}"
    if distinct < MIN_DISTINCT:
        return f"a continuation of {distinct} distinct ids"
    golden = {
        "model": name,
        "note": f"transformers {transformers.__version__}, torch {torch.__version__}, CPU, float32 "
        "arithmetic on the saved weights, attn_implementation=eager; seed "
        f"{seed} of make_tiny_models.py",
        "prompts": prompts,
        "nll": nll_of(model, rng.integers(0, vocab, 8 * window).tolist(), window),
    }
    (path / "golden.json").write_text(json.dumps(golden, separators=(",", ":")) + "\n")
    np.save(path / "golden.logits.npy", np.stack(rows).astype(np.float32))
    print(f"{name}: seed {seed}, smallest gap {gap}, at least {distinct} distinct ids, "
          f"largest logit {np.abs(np.stack(rows)).max():.1f}, "
          f"NLL {golden['nll']['mean_nll']:.3f}")
    return None


def main():
    transformers.utils.logging.disable_progress_bar()
    for name in sys.argv[1:] or MODELS:
        for seed in range(1, 200):
            why = make(name, seed)
            if why is None:
                break
            print(f"{name}: seed {seed}: {why}")
        else:
            sys.exit(f"{name}: no seed will do")


if __name__ == "__main__":
    main()
