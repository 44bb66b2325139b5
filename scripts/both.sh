#!/bin/sh
# Runs two commands at the same time, and fails if one of them does: both.sh COMMAND COMMAND
# What the second says comes in one piece, when both have ended.
set -eu

said=$(mktemp)
trap 'rm -f "$said"' EXIT
printf '%s\n' "$1" "$2"
sh -c "$2" > "$said" 2>&1 &
second=$!
first=0
sh -c "$1" || first=$?
also=0
wait "$second" || also=$?
cat "$said"
[ "$first" = 0 ] || printf 'failed (%s): %s\n' "$first" "$1" >&2
[ "$also" = 0 ] || printf 'failed (%s): %s\n' "$also" "$2" >&2
[ "$first$also" = 00 ]
