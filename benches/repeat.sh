#!/usr/bin/env bash
# Does the benchmark repeat itself? Pairs of runs of one kernel, and how many of them agree within
# their intervals by `oddgrad bench compare`. Fails below 19 of 20.
#
#     benches/repeat.sh [PAIRS [ARGUMENTS OF bench]]
#
#   ODDGRAD  the binary (default: target/release/oddgrad)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

binary=${ODDGRAD:-target/release/oddgrad}
[ -x "$binary" ] || { echo "error: no binary at $binary; build it or set ODDGRAD" >&2; exit 1; }
pairs=${1:-20}
shift || true
[ $# -gt 0 ] || set -- matmul --pass nn --shapes 512x512x512 --variants 6
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

echo "\$ oddgrad bench $*, in pairs"
agree=0
for ((i = 1; i <= pairs; i++)); do
    for run in a b; do
        "$binary" bench "$@" --json "$folder/$run.json" >"$folder/log" 2>&1 ||
            { cat "$folder/log" >&2; exit 1; }
    done
    # Beyond the noise or not is what counts here, whatever its size.
    verdict=$("$binary" bench compare "$folder/a.json" "$folder/b.json" --limit 1000% |
        grep -F -e '->')
    echo "$verdict"
    if ! grep -qv 'no difference within noise' <<<"$verdict"; then
        agree=$((agree + 1))
    fi
done
echo "$agree of $pairs pairs agree within their intervals"
((20 * agree >= 19 * pairs)) # else the exit code says it
