"""Loads an adapter that oddgrad trained with PEFT, and compares it with the model that oddgrad merged.

    python scripts/check_adapter.py BASE ADAPTER MERGED    # folders

Prints the largest difference of the logits on a few token sequences, and whether 32 greedy tokens are
the same. Needs torch, transformers, peft and safetensors.
"""
import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

base, adapter, merged = sys.argv[1:4]
torch.set_num_threads(1)
load = lambda folder: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
adapted = PeftModel.from_pretrained(load(base), adapter).eval()
plain, merged = load(base).eval(), load(merged).eval()
vocab = plain.config.vocab_size
worst, moved, same = 0.0, 0.0, True
for seed in range(4):
    torch.manual_seed(seed)
    ids = torch.randint(6, vocab, (1, 12))
    with torch.no_grad():
        a, b, c = (model(input_ids=ids).logits for model in (adapted, merged, plain))
        worst = max(worst, (a - b).abs().max().item())
        moved = max(moved, (a - c).abs().max().item())
        greedy = [m.generate(input_ids=ids, max_new_tokens=32, do_sample=False) for m in (adapted, merged)]
        same &= torch.equal(*greedy)
print(f"logits differ by {worst:.1e} at most (the adapter moves them by {moved:.1e}); greedy tokens equal: {same}")
assert worst < 1e-4 and moved > 1e-3 and same
