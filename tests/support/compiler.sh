#!/bin/sh
# Stands in for a compiler in tests/load.rs: says the version that it is told to have, and repeats its arguments.
case "$1" in
--version) echo "rustc $SAID_RELEASE (000000000 2026-01-01)" ;;
*) printf '%s\n' "$@" ;;
esac
