#!/bin/sh
# Counts anew how often each part of nullhop's code runs in the load test (profile-guided optimisation), for `cargo build --release`
# to arrange it by: before a release, and when the compiler has changed.
#
#   deploy/pgo/refresh.sh          # about ten minutes on two cores; then commit deploy/pgo/counts-*.profdata
#
# Needs llvm-profdata, of the compiler's own LLVM or a newer one (`rustc -vV`): `rustup component add llvm-tools`, a package of
# the distribution, or LLVM_PROFDATA=/path/to/llvm-profdata. The build that counts writes them to a file: it is for this script
# only, never for traffic.
set -eu
cd "$(dirname "$0")/../.."

work="$PWD/target/pgo"
# What comes often and small, and what comes in bulk: its inner loops run so often that nothing else would seem to run at all.
rows=unary,h2-unary,sse-paced,h2-sse-paced,handshake-full,handshake-resumed
bulk_rows=sse-grouped,sse-unpaced,h2-sse-unpaced,up,down
host=$(rustc -vV | sed -n 's/^host: //p')
release=$(rustc -vV | sed -n 's/^release: //p')
ours=$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')

find_profdata() {
    for tool in "${LLVM_PROFDATA:-}" "$(rustc --print sysroot)/lib/rustlib/$host/bin/llvm-profdata" \
        "llvm-profdata-$ours" "llvm-profdata"; do
        [ -n "$tool" ] || continue
        version=$("$tool" --version 2>/dev/null | sed -n 's/.*LLVM version \([0-9]*\).*/\1/p') || continue
        if [ "${version:-0}" -ge "$ours" ]; then
            echo "$tool"
            return
        fi
    done
    echo "no llvm-profdata of LLVM $ours or newer: rustup component add llvm-tools, or LLVM_PROFDATA=..." >&2
    exit 1
}
profdata=$(find_profdata)

rm -rf "$work/counts"
mkdir -p "$work/counts/small" "$work/counts/bulk"

echo "1 of 3: a build that counts" >&2
# The counters stand in a mapped file, since nothing can be opened for writing once nullhop runs (docs/hardening.md). Values are
# not counted: they would be written at exit only.
RUSTFLAGS="-Cprofile-generate=$work/counts -Cllvm-args=-runtime-counter-relocation -Cllvm-args=-disable-vp" \
    CARGO_TARGET_DIR="$work/counting" cargo build --release --locked --package nullhop

echo "2 of 3: the load test" >&2
cargo build --release --locked --package nullhop-loadtests
for each in "small $rows" "bulk $bulk_rows"; do
    LLVM_PROFILE_FILE="$work/counts/${each% *}/%p%c.profraw" \
        target/release/load --rounds 1 --proxies nullhop --only "${each#* }" --nullhop "$work/counting/release/nullhop"
done

echo "3 of 3: the counts" >&2
"$profdata" merge -o "$work/nullhop.profdata" \
    --weighted-input="100,$work/counts/small" --weighted-input="1,$work/counts/bulk"
rm -f deploy/pgo/counts-*.profdata
mv "$work/nullhop.profdata" "deploy/pgo/counts-$release.profdata"
ls -l "deploy/pgo/counts-$release.profdata"
