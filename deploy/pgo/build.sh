#!/bin/sh
# A release build that the compiler arranges by what the load test makes it do (profile-guided optimisation):
#
#   deploy/pgo/build.sh            # about ten minutes on two cores; prints where the binary is
#
# Needs llvm-profdata, of the compiler's own LLVM or a newer one (`rustc -vV`): `rustup component add llvm-tools`, a package of
# the distribution, or LLVM_PROFDATA=/path/to/llvm-profdata. Everything else stands in target/pgo. The first of its two builds
# counts how often code runs and writes the counts to a file: it is for this script only, never for traffic.
set -eu
cd "$(dirname "$0")/../.."

work="$PWD/target/pgo"
rows=unary,h2-unary,sse-paced,h2-sse-paced,sse-grouped,sse-unpaced,h2-sse-unpaced,up,down,handshake-full,handshake-resumed
host=$(rustc -vV | sed -n 's/^host: //p')
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
mkdir -p "$work/counts"

echo "1 of 4: a build that counts" >&2
# The counters stand in a mapped file, since nothing can be opened for writing once nullhop runs (docs/hardening.md). Values are
# not counted: they would be written at exit only.
RUSTFLAGS="-Cprofile-generate=$work/counts -Cllvm-args=-runtime-counter-relocation -Cllvm-args=-disable-vp" \
    CARGO_TARGET_DIR="$work/counting" cargo build --release --locked --package nullhop

echo "2 of 4: the load test" >&2
cargo build --release --locked --package nullhop-loadtests
LLVM_PROFILE_FILE="$work/counts/%p%c.profraw" \
    target/release/load --rounds 1 --proxies nullhop --only "$rows" --nullhop "$work/counting/release/nullhop"

echo "3 of 4: the counts" >&2
"$profdata" merge -o "$work/nullhop.profdata" "$work/counts"

echo "4 of 4: the build" >&2
RUSTFLAGS="-Cprofile-use=$work/nullhop.profdata" \
    CARGO_TARGET_DIR="$work/build" cargo build --release --locked --package nullhop
echo "$work/build/release/nullhop"
