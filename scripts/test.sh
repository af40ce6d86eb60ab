#!/usr/bin/env bash
# Every check of the project: formatting, lints, documentation, examples, tests. Installs what is missing.
# Arguments go to the test runner: scripts/test.sh softmax
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh

ensure_vulkan
ensure_c_compiler
ensure_rust
ensure_component fmt rustfmt
ensure_component clippy clippy
# A browser is much to install for one test: only where nobody works otherwise. Elsewhere the test
# runs if there is a chromedriver, and says so if not.
if [ "${CI:-}" = true ] && is_linux; then
    have chromedriver || apt_install "No browser for the test of oddgrad collect" chromium chromium-driver
    export ODDGRAD_BROWSER=yes
fi
nextest=yes
ensure_nextest || nextest=no

say "== formatting"
cargo fmt --check
say "== lints"
cargo clippy --locked --all-targets -- -D warnings
# Each set of features that a library user can choose builds by itself.
cargo clippy --locked --no-default-features --lib -- -D warnings
cargo clippy --locked --no-default-features --features train,gl --lib -- -D warnings
say "== documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --lib --quiet
cargo test --locked --doc --quiet
say "== examples"
for example in examples/*.rs; do
    cargo run --locked --quiet --example "$(basename "$example" .rs)"
done

# Last, so that the runner's own summary ends the output.
say "== tests"
if [ "$nextest" = yes ]; then
    cargo nextest run --locked "$@"
else
    say "cargo nextest could not be installed: running the tests with cargo test."
    cargo test --locked --all-targets "$@"
fi
