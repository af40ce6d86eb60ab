"""Records 12 steps of TRL's DPOTrainer on llama_untied: train/llama_untied_dpo.

    python3.11 -m venv venv && venv/bin/pip install torch==2.15.0 transformers==5.23.0 trl==1.16.0 accelerate==1.15.0
    venv/bin/python train_dpo.py

Writes log.json (arguments, the objective as a recipe spells it, TRL's log by step) and batches.json (every micro-batch
in the layout that `oddgrad verify` reads: ids, masks and labels by side)."""
import json, os, tempfile

os.environ.update(CUDA_VISIBLE_DEVICES="", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

GOLDEN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
MODEL, ROWS, OUT = "llama_untied", "prefs_plain", "train/llama_untied_dpo"
torch.set_num_threads(2)
torch.use_deterministic_algorithms(True)


def halves(batch, key):
    chosen, rejected = batch[key].chunk(2)
    return {"chosen": chosen, "rejected": rejected}


def by_side(batch):
    """TRL stacks the rejected sequences below the chosen ones and has a mask where the reader has labels."""
    out = {}
    ids, mask, answer = (halves(batch, key) for key in ("input_ids", "attention_mask", "completion_mask"))
    for side in ids:
        out[f"{side}_input_ids"] = ids[side].tolist()
        out[f"{side}_attention_mask"] = mask[side].tolist()
        out[f"{side}_labels"] = torch.where(answer[side].bool(), ids[side], -100).tolist()
    return out


class Recorder(DPOTrainer):
    batches = []

    def compute_loss(self, model, inputs, *args, **kwargs):
        self.batches.append(by_side(inputs))
        return super().compute_loss(model, inputs, *args, **kwargs)


with open(f"{GOLDEN}/data/{ROWS}.jsonl", encoding="utf-8") as lines:
    rows = [json.loads(line) for line in lines]
settings = dict(
    per_device_train_batch_size=4, gradient_accumulation_steps=1, max_steps=12, learning_rate=1e-3,
    lr_scheduler_type="constant", warmup_steps=0, weight_decay=0.0, adam_beta1=0.9, adam_beta2=0.999,
    adam_epsilon=1e-8, max_grad_norm=1.0, beta=0.1, max_length=128, seed=42)
trainer = Recorder(
    model=AutoModelForCausalLM.from_pretrained(f"{GOLDEN}/{MODEL}", attn_implementation="eager", dtype=torch.float32),
    # The two models share a tokenizer, which is stored once.
    processing_class=AutoTokenizer.from_pretrained(f"{GOLDEN}/llama_tied"),
    train_dataset=Dataset.from_list(rows),
    args=DPOConfig(
        output_dir=tempfile.mkdtemp(), optim="adamw_torch", loss_type=["sigmoid"], logging_steps=1, save_strategy="no",
        report_to=[], bf16=False, fp16=False, gradient_checkpointing=False, use_cpu=True, disable_tqdm=True,
        train_sampling_strategy="sequential", dataloader_num_workers=0, **settings))
trainer.train()
log = [entry for entry in trainer.state.log_history if "loss" in entry]
os.makedirs(f"{GOLDEN}/{OUT}", exist_ok=True)
with open(f"{GOLDEN}/{OUT}/log.json", "w") as file:
    json.dump({"model": MODEL, "dataset": ROWS, "objective": "dpo", "loss": {"type": "sigmoid", "beta": 0.1},
               "args": settings, "log": log}, file, indent=1)
with open(f"{GOLDEN}/{OUT}/batches.json", "w") as file:
    json.dump(trainer.batches, file)
for entry in log:
    print({key: entry[key] for key in ("loss", "grad_norm", "rewards/chosen", "rewards/margins", "rewards/accuracies", "logps/chosen")})
