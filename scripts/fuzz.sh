#!/usr/bin/env bash
# Looks for a file that makes oddgrad panic, hang for 5 s or take more than 2 GiB, for SECONDS per format
# (default 600), and prints how many inputs each took.
#
#   scripts/fuzz.sh [SECONDS [FORMAT…]]           cargo-fuzz: coverage leads to new inputs (fuzz/)
#   scripts/fuzz.sh --random [SECONDS [NAME…]]    damage at random (tests/suite/malformed.rs)
#
# Formats: safetensors weights gguf config adapter tokenizer template recipe jsonl json gz parquet state tuner
# wgsl. What is found stays in fuzz/artifacts, or target/tmp/malformed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh

ensure_vulkan
ensure_c_compiler
ensure_rust

random=
if [ "${1:-}" = --random ]; then
    random=1
    shift
fi
seconds=${1:-600}
shift || true

if [ -n "$random" ]; then
    [ $# -gt 0 ] || set -- ""
    for name in "$@"; do
        ODDGRAD_FUZZ_SECONDS=$seconds cargo test --locked --test suite "malformed::malformed_$name" -- \
            --nocapture --test-threads 1
    done
    exit
fi

[ $# -gt 0 ] || set -- safetensors weights gguf config adapter tokenizer template recipe jsonl json gz parquet \
    state tuner wgsl
cargo fuzz --version >/dev/null 2>&1 || cargo install cargo-fuzz --locked
export ODDGRAD_FUZZ_CORPUS=$PWD/target/fuzz-corpus
cargo test --locked --test suite malformed::malformed_ -- --test-threads 1
failed=0
for format in "$@"; do
    # Without a sanitizer, which no stable compiler has; overflow and bounds are checked all the same.
    cargo fuzz run --sanitizer none --debug-assertions "$format" "$ODDGRAD_FUZZ_CORPUS/$format/inputs" -- \
        -max_total_time="$seconds" -timeout=5 -rss_limit_mb=2048 -max_len=65536 -print_final_stats=1 \
        2>&1 | tee "target/fuzz-$format.log" | grep -aE '^(panic|SUMMARY|stat::number_of_executed_units)|Test unit written' \
        | sed "s/^/$format: /" || true
    grep -aq '^stat::number_of_executed_units' "target/fuzz-$format.log" || failed=1
    ! grep -aqE '^(panic|SUMMARY)' "target/fuzz-$format.log" || failed=1
done
exit $failed
