#!/usr/bin/env bash
# One command for a machine with a GPU: what the adapter is, whether the engine is right on it, and
# how fast a training step is. Writes everything into one file under benches/results/.
#
#     benches/gpu.sh [ADAPTER]
#
# Needs only a built binary, so it can run where there is no Rust:
#   ODDGRAD        the binary (default: target/release/oddgrad, built if there is a cargo)
#   ODDGRAD_TESTS  a folder of test executables (from `cargo test --no-run`); without it the tests
#                  run through cargo, and are left out, with a line saying so, where there is none
#   RESULTS        where to write (default: benches/results)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

binary=${ODDGRAD:-target/release/oddgrad}
if [ -z "${ODDGRAD:-}" ] && command -v cargo >/dev/null; then
    cargo build --release --locked
fi
[ -x "$binary" ] || { echo "error: no binary at $binary; build it or set ODDGRAD" >&2; exit 1; }
pick=()
[ $# -eq 0 ] || pick=(--adapter "$1")

results=${RESULTS:-benches/results}
mkdir -p "$results"
chosen=$("$binary" "${pick[@]}" doctor | sed -n 's/^chosen: //p')
name=$(printf '%s' "$chosen" | tr -c 'A-Za-z0-9' '-' | tr -s '-' | cut -c1-60)
out="$results/$(date -u +%Y-%m-%d)-${name%-}.txt"

section() {
    printf '\n$ %s\n' "$*"
    "$@" || echo "(exit code $?)"
}

{
    echo "adapter: $chosen"
    section "$binary" "${pick[@]}" doctor --kernels
    section "$binary" "${pick[@]}" verify tests/golden/llama_tied tests/golden/llama_untied \
        tests/golden/llama_overfit tests/golden/train/llama_tied_plain_linear \
        tests/golden/train/llama_untied_plain_const
    # Without a tuned file that may lie on this machine, then with one made here.
    section "$binary" "${pick[@]}" --untuned bench step --steps 30
    section "$binary" "${pick[@]}" --untuned bench step --steps 30 --tokens 8192
    ODDGRAD_CACHE=$(mktemp -d)
    export ODDGRAD_CACHE
    section "$binary" "${pick[@]}" tune --f16 --tokens 8192
    section "$binary" "${pick[@]}" bench step --steps 30 --tokens 8192
    section "$binary" "${pick[@]}" --f16 bench step --steps 30 --tokens 8192
    for op in matmul softmax attention token_logp rms_norm embedding adamw; do
        section "$binary" "${pick[@]}" bench "$op" --shapes smollm2
    done
    section "$binary" "${pick[@]}" bench matmul --shapes large
    ODDGRAD=$binary section benches/repeat.sh 20 matmul --pass nn --variants 7 \
        --shapes 1024x1024x1024 "${pick[@]}"
    if [ -n "${ODDGRAD_TESTS:-}" ]; then
        for test in "$ODDGRAD_TESTS"/*; do section "$test"; done
    elif command -v cargo >/dev/null; then
        section cargo test --release --locked
    else
        echo "tests left out: no cargo here and ODDGRAD_TESTS is not set"
    fi
} 2>&1 | tee "$out"
echo "written: $out"
# The sections ran in a pipeline of their own: what they wrote says whether one failed.
! grep -q '^(exit code' "$out"
