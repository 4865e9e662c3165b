#!/usr/bin/env bash
# Compiles every Coq file of this folder and asks Coq what each theorem assumes.
#
#   apt-get install coq libcoq-mathcomp-ssreflect && proofs/check.sh
#
# Every theorem and corollary of a t*.v file must be named in a Print Assumptions at its end, and
# every answer must be "Closed under the global context": no axiom and no unfinished proof. Compiles in a
# folder of its own, or in the one given as an argument, so that nothing is left beside the sources.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
if (($#)); then
    build=$1
    mkdir -p "$build"
else
    build=$(mktemp -d)
    trap 'rm -rf "$build"' EXIT
fi
cp "$here"/*.v "$build"
cd "$build"

flags=(-w -notation-overridden -Q . H2O)
total=0
for file in $(coqdep -Q . H2O -sort ./*.v); do
    name=$(basename "$file")
    start=$(date +%s%N)
    answers=$(coqc "${flags[@]}" "$file")
    spent=$((($(date +%s%N) - start) / 1000000))
    asked=$(sed -nE 's/^Print Assumptions ([A-Za-z0-9_]+)\.$/\1/p' "$file" | sort)
    stated=$(sed -nE 's/^(Theorem|Corollary) ([A-Za-z0-9_]+).*/\2/p' "$file" | sort)
    closed=$(grep -c '^Closed under the global context$' <<<"$answers" || true)
    if [[ $name == t* && -z $asked ]]; then
        echo "$name: no Print Assumptions" >&2
        exit 1
    fi
    if [[ $name == t* && $asked != "$stated" ]]; then
        echo "$name: theorems stated and theorems asked about differ:" >&2
        diff <(echo "$stated") <(echo "$asked") >&2 || true
        exit 1
    fi
    if [[ $closed != $(grep -c . <<<"$asked" || true) ]]; then
        echo "$name: a theorem assumes something:" >&2
        echo "$answers" >&2
        exit 1
    fi
    total=$((total + closed))
    printf '%-36s %2d closed  %5d ms\n' "$name" "$closed" "$spent"
done
echo "$total theorems, all closed under the global context"
