"""Loss and gradients of TRL's own KTOTrainer on llama_untied's batch, in float64: objectives/kto.json and
objectives/<name>.grads.safetensors.

    python3.11 -m venv venv && venv/bin/pip install torch==2.15.0 transformers==5.24.0 trl==1.16.0 accelerate==1.15.0
    venv/bin/python kto.py

The three pairs of batch.json, whose token ids are kept, are one batch of six rows as TRL unpairs them: the chosen
answers, then the rejected ones. Their answers are rotated by one for the KL term, as TRL does to a batch; collator,
loss and figures are TRL's. What the reference model gives them is written too."""
import json, os, tempfile

os.environ.update(CUDA_VISIBLE_DEVICES="", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
import torch
from datasets import Dataset
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import KTOConfig, KTOTrainer
from trl.kernels import chunked_logprob

GOLDEN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
torch.set_num_threads(2)
torch.use_deterministic_algorithms(True)
to, softmax = torch.Tensor.to, torch.nn.functional.softmax


def keep(self, *args, **kwargs):
    """transformers' modelling code casts to float32 in places; here nothing leaves float64."""
    if self.dtype == torch.float64 and (torch.float32 in args or kwargs.get("dtype") == torch.float32):
        args = tuple(x for x in args if x is not torch.float32)
        kwargs.pop("dtype", None)
        return to(self, *args, **kwargs) if args or kwargs else self
    return to(self, *args, **kwargs)


torch.Tensor.to = keep
torch.Tensor.float = lambda self: self if self.dtype == torch.float64 else to(self, torch.float32)
torch.nn.functional.softmax = lambda x, dim=None, dtype=None, **kwargs: softmax(x, dim=dim)


class Double:
    """torch for TRL's fused head, which sums in float32."""
    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


chunked_logprob.torch = Double()


def load(name):
    return AutoModelForCausalLM.from_pretrained(f"{GOLDEN}/{name}", attn_implementation="eager", dtype=torch.float64)


def sums(trainer, batch):
    with torch.no_grad():
        return trainer.compute_ref_log_probs(trainer.ref_model, batch)


class Tokenized(KTOTrainer):
    def _prepare_dataset(self, dataset, processing_class, args, name):
        rows = list(dataset)
        answers = [row["completion_ids"] for row in rows]
        if self.calculate_KL:
            rows = [{**row, "KL_completion_ids": answer} for row, answer in zip(rows, answers[-1:] + answers[:-1])]
        return Dataset.from_list(rows)


# With llama_tied the mean over the mismatched answers is below 0 and clamped, with the sharper reference it is not.
RUNS = {
    "kto": ("llama_untied", 4.0, dict(loss_type="kto", beta=0.1)),
    "kto_weighted": ("llama_tied", 1.0, dict(loss_type="kto", beta=0.3, desirable_weight=1.5, undesirable_weight=0.5)),
    "apo_zero_unpaired": ("llama_tied", 1.0, dict(loss_type="apo_zero_unpaired", beta=0.1)),
}
with open(f"{GOLDEN}/llama_untied/batch.json", encoding="utf-8") as file:
    pairs = json.load(file)["tokenized"]
rows = []
for side in ("chosen", "rejected"):
    for pair in pairs:
        ids, labels = pair[f"{side}_input_ids"], pair[f"{side}_labels"]
        start = next(i for i, label in enumerate(labels) if label != -100)
        rows.append({"prompt_ids": ids[:start], "completion_ids": ids[start:], "label": side == "chosen"})
table = {}
for name, (reference, sharper, settings) in RUNS.items():
    ref_model = load(reference)
    ref_model.model.norm.weight.data.mul_(sharper)
    trainer = Tokenized(
        model=load("llama_untied"), ref_model=ref_model,
        processing_class=AutoTokenizer.from_pretrained(f"{GOLDEN}/llama_tied"),
        train_dataset=Dataset.from_list(rows),
        args=KTOConfig(
            output_dir=tempfile.mkdtemp(), per_device_train_batch_size=6, max_length=32, report_to=[], bf16=False,
            fp16=False, gradient_checkpointing=False, use_cpu=True, disable_tqdm=True, **settings))
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    assert loss.dtype == torch.float64
    grads = {k: to(p.grad, torch.float32).contiguous() for k, p in trainer.model.named_parameters()}
    save_file(grads, f"{GOLDEN}/objectives/{name}.grads.safetensors")
    own, mismatched = sums(trainer, batch)
    length = batch["completion_mask"].sum(-1)
    metrics = {key: values[-1] for key, values in trainer._metrics["train"].items()}
    entry = {"reference": reference, "reference_norm_times": sharper, "settings": settings, "float64": {"loss": loss.item(), **metrics},
             "labels": batch["label"].tolist(), "reference_mean_logps": (own / length).tolist()}
    if mismatched is not None:
        entry["mismatched_reference_mean_logps"] = (mismatched / batch["KL_completion_mask"].sum(-1)).tolist()
        masks = zip(batch["KL_input_ids"], batch["KL_attention_mask"])
        entry["mismatched_input_ids"] = [ids[mask.bool()].tolist() for ids, mask in masks]
    table[name] = entry
    print(name, entry["float64"])
with open(f"{GOLDEN}/objectives/kto.json", "w") as file:
    json.dump(table, file, indent=1)
