"""Tiny random models of further families with expected values, by transformers' own code in float64.

    python scripts/families.py NAME...    # in tests/golden: (re)makes each folder NAME; `all` for all

transformers casts norms, rotary angles and softmax to float32; here those casts keep float64, and only the
inverse frequencies of rope are rounded to float32, as transformers stores them. Needs torch, transformers
and safetensors.
"""
import json
import os
import shutil
import sys

import torch
import torch.nn.functional as F
import transformers as T
from safetensors.torch import save_file

LAMBDA, VOCAB = 0.1, 128
torch.set_num_threads(1)

BASE = dict(
    vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, max_position_embeddings=96, initializer_range=0.12, rms_norm_eps=1e-5,
    bos_token_id=3, eos_token_id=4, pad_token_id=5,
)
PLAIN = {"rope_type": "default", "rope_theta": 100.0}


def llama(**rope):
    rope = {"rope_theta": 100.0, **rope}
    return lambda: T.LlamaConfig(**BASE, rope_parameters=rope, tie_word_embeddings=True)


CONFIGS = {
    "llama_rope_linear": llama(rope_type="linear", factor=4.0),
    "llama_rope_dynamic": llama(rope_type="dynamic", factor=2.0),
    # Pairs on either side of both wavelengths and between them.
    "llama_rope_llama3": llama(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=3.0,
                               original_max_position_embeddings=32),
    "llama_rope_yarn": llama(rope_type="yarn", factor=4.0, original_max_position_embeddings=16,
                             beta_fast=2.0, beta_slow=0.25),
    # 8 of the 16 elements of a head turn.
    "phi3": lambda: T.Phi3Config(**BASE, sliding_window=9, rope_parameters={
        "rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5}),
    "olmo2": lambda: T.Olmo2Config(**BASE, rope_parameters=PLAIN),
    "smollm3": lambda: T.SmolLM3Config(**{**BASE, "num_hidden_layers": 3}, no_rope_layers=[1, 0, 1],
                                       use_sliding_window=True, sliding_window=8, rope_parameters=PLAIN),
    "granite": lambda: T.GraniteConfig(**BASE, embedding_multiplier=5.0, attention_multiplier=0.125,
                                       residual_multiplier=0.3, logits_scaling=1.5, rope_parameters=PLAIN),
    # 4 of the 16 elements of a head turn.
    "stablelm": lambda: T.StableLmConfig(
        **{k: v for k, v in BASE.items() if k != "rms_norm_eps"}, use_qkv_bias=True, rope_parameters={
            **PLAIN, "partial_rotary_factor": 0.25}),
    # Caps so low that they bend most scores and logits.
    "gemma2": lambda: T.Gemma2Config(**BASE, head_dim=16, query_pre_attn_scalar=4, sliding_window=8,
                                     attn_logit_softcapping=1.5, final_logit_softcapping=2.0,
                                     rope_parameters=PLAIN, tie_word_embeddings=True),
    "gemma3_text": lambda: T.Gemma3TextConfig(
        **{**BASE, "num_hidden_layers": 3}, head_dim=16, query_pre_attn_scalar=4, sliding_window=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"], tie_word_embeddings=True,
        rope_parameters={"full_attention": {"rope_theta": 1000.0, "rope_type": "linear", "factor": 2.0},
                         "sliding_attention": PLAIN}),
}


def stay_double():
    """Casts of a float64 tensor to float32 do nothing from here on."""
    to, softmax, narrow = torch.Tensor.to, F.softmax, torch.Tensor.float

    def keep(self, *args, **kwargs):
        if self.dtype == torch.float64 and (torch.float32 in args or kwargs.get("dtype") == torch.float32):
            args = tuple(a for a in args if a is not torch.float32)
            kwargs.pop("dtype", None)
            return to(self, *args, **kwargs) if args or kwargs else self
        return to(self, *args, **kwargs)

    def soft(x, dim=None, dtype=None, **kwargs):
        return softmax(x, dim=dim) if x.dtype == torch.float64 else softmax(x, dim=dim, dtype=dtype)

    torch.Tensor.to = keep
    torch.Tensor.float = lambda self: self if self.dtype == torch.float64 else narrow(self)
    F.softmax = torch.nn.functional.softmax = soft


def batch():
    """Three pairs of answers: a long one, one of a token, one whose answers begin alike."""
    g = torch.Generator().manual_seed(7)
    ids = lambda n: torch.randint(6, VOCAB, (n,), generator=g).tolist()
    rows = []
    for prompt, chosen, rejected in [(10, 13, 9), (3, 1, 1), (5, 4, 6)]:
        start = [3] + ids(prompt)
        shared = ids(2) if chosen == 4 else []
        row = {}
        for side, n in (("chosen", chosen), ("rejected", rejected)):
            answer = shared + ids(n) + [4]
            row[f"{side}_input_ids"] = start + answer
            row[f"{side}_attention_mask"] = [1] * len(start + answer)
            row[f"{side}_labels"] = [-100] * len(start) + answer
        rows.append(row)
    return {"tokenized": rows}


def odds(x):
    return x - torch.log(-torch.expm1(x))


def orpo(model, rows):
    """The loss and its parts, and logits and token log-probs of every sequence by itself."""
    sequences = [row[f"{side}_input_ids"] for side in ("chosen", "rejected") for row in rows]
    labels = [row[f"{side}_labels"] for side in ("chosen", "rejected") for row in rows]
    width, count = max(map(len, sequences)), len(rows)
    logits = torch.zeros(2 * count, width, model.config.vocab_size, dtype=torch.float64)
    token_logps = torch.zeros(2 * count, width - 1, dtype=torch.float64)
    nll, means = 0.0, []
    for r, (ids, label) in enumerate(zip(sequences, labels)):
        out = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        logp = torch.log_softmax(out[:-1], -1)[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
        logits[r, : len(ids)] = out.detach()
        token_logps[r, : len(ids) - 1] = logp.detach()
        response = torch.tensor(label[1:]) != -100
        means.append((logp * response).sum() / response.sum())
        if r < count:
            nll = nll - logp.sum()
    nll = nll / sum(len(ids) - 1 for ids in sequences[:count])
    means = torch.stack(means)
    chosen, rejected = means[:count], means[count:]
    log_odds = odds(chosen) - odds(rejected)
    loss = nll - LAMBDA * F.logsigmoid(log_odds).mean()
    parts = {"loss": loss, "nll": nll, "chosen_logps": chosen, "rejected_logps": rejected, "log_odds": log_odds}
    return loss, {k: v.detach().tolist() for k, v in parts.items()}, logits, token_logps


def make(name):
    torch.manual_seed(4321)
    model = T.AutoModelForCausalLM.from_config(CONFIGS[name](), attn_implementation="eager", dtype=torch.float32)
    g = torch.Generator().manual_seed(99)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:  # norms and biases: nothing may be 1 or 0
                p.add_(0.1 * torch.randn(p.shape, generator=g))
    shutil.rmtree(name, ignore_errors=True)
    model.eval().save_pretrained(name)
    os.path.exists(f"{name}/generation_config.json") and os.remove(f"{name}/generation_config.json")
    data = batch()
    json.dump(data, open(f"{name}/batch.json", "w"))
    model = model.double()
    loss, parts, logits, token_logps = orpo(model, data["tokenized"])
    loss.backward()
    grads = {k: p.grad.float().contiguous() for k, p in model.named_parameters()}
    save_file(grads, f"{name}/grads_f64.safetensors")
    save_file({"logits": logits.float(), "token_logps": token_logps}, f"{name}/golden.safetensors")
    json.dump({"beta": LAMBDA, "float64": parts}, open(f"{name}/golden.json", "w"), indent=1)
    for f in os.listdir(name):
        os.chmod(f"{name}/{f}", 0o644)
    size = sum(os.path.getsize(f"{name}/{f}") for f in os.listdir(name))
    print(f"{name}: {size / 1e3:.0f} KB, loss {parts['loss']:.12f}", flush=True)


if __name__ == "__main__":
    stay_double()
    names = sys.argv[1:]
    for name in CONFIGS if names == ["all"] else names:
        make(name)
