"""Reference values of a LoRA adapter on llama_untied, by PEFT and PyTorch in float64.

    python scripts/lora.py    # in tests/golden: writes golden.json, golden.safetensors, batch.json
                              # and grads_f64.safetensors into lora_llama_untied

The adapter itself (rank 4, alpha 8, seven kinds of layers, B not zero) is PEFT's own file. Needs torch,
transformers, peft and safetensors.
"""
import json
import shutil

import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

BASE, ADAPTER, LAMBDA = "llama_untied", "lora_llama_untied", 0.1
torch.set_num_threads(1)


def rows(batch, side):
    """Token ids and, for each, whether it belongs to the response."""
    for row in batch:
        ids, labels = row[f"{side}_input_ids"], row[f"{side}_labels"]
        yield ids, [label != -100 for label in labels]


base = AutoModelForCausalLM.from_pretrained(BASE, attn_implementation="eager", dtype=torch.float64)
model = PeftModel.from_pretrained(base, ADAPTER, is_trainable=True).double()
batch = json.load(open(f"{BASE}/batch.json"))["tokenized"]
width = max(len(ids) for side in ("chosen", "rejected") for ids, _ in rows(batch, side))
vocab = base.config.vocab_size
count = 2 * len(batch)
logits = torch.zeros(count, width, vocab, dtype=torch.float64)
token_logps = torch.zeros(count, width - 1, dtype=torch.float64)

nll, nll_tokens, means = 0.0, 0, {"chosen": [], "rejected": []}
for s, side in enumerate(("chosen", "rejected")):
    for r, (ids, response) in enumerate(rows(batch, side)):
        out = model(input_ids=torch.tensor([ids])).logits[0]
        logp = torch.log_softmax(out[:-1], -1)[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
        at = s * len(batch) + r
        logits[at, : len(ids)] = out.detach()
        token_logps[at, : len(ids) - 1] = logp.detach()
        of_response = torch.tensor(response[1:])
        means[side].append((logp * of_response).sum() / of_response.sum())
        if side == "chosen":
            nll, nll_tokens = nll - logp.sum(), nll_tokens + len(ids) - 1
nll = nll / nll_tokens
log_odds = []
for w, l in zip(means["chosen"], means["rejected"]):
    log_odds.append((w - l) - (torch.log(-torch.expm1(w)) - torch.log(-torch.expm1(l))))
odds_loss = torch.stack([-torch.nn.functional.logsigmoid(z) for z in log_odds]).mean()
loss = nll + LAMBDA * odds_loss
loss.backward()

grads = {
    name.replace(".default", ""): p.grad.contiguous()
    for name, p in model.named_parameters()
    if p.grad is not None
}
assert grads and all(".lora_" in name for name in grads)
number = lambda x: [v.item() for v in x]
values = {
    "loss": loss.item(),
    "nll": nll.item(),
    "chosen_logps": number(means["chosen"]),
    "rejected_logps": number(means["rejected"]),
    "log_odds": number(log_odds),
}
save_file(grads, f"{ADAPTER}/grads_f64.safetensors")
save_file({"logits": logits.float(), "token_logps": token_logps}, f"{ADAPTER}/golden.safetensors")
json.dump({"beta": LAMBDA, "float64": values}, open(f"{ADAPTER}/golden.json", "w"), indent=1)
shutil.copy(f"{BASE}/batch.json", f"{ADAPTER}/batch.json")
print(f"loss {loss.item():.12f}, {len(grads)} gradients, logits {tuple(logits.shape)}")
