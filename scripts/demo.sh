#!/usr/bin/env bash
# From log files to the report, in minutes on two cores.
# Usage: bash scripts/demo.sh [--logs PATH] [--out DIR] [--small]
#   --logs PATH  your own MSSD log files (a file, a folder or a quoted glob); synthetic ones are made without it
#   --out DIR    where everything goes (default: demo)
#   --small      fewer sessions and cells, to check that everything works
set -euo pipefail
start_folder=$PWD
logs="" out="" small=""
while [ $# -gt 0 ]; do
    case $1 in
        --logs) logs=$2; shift 2 ;;
        --out) out=$2; shift 2 ;;
        --small) small=yes; shift ;;
        *) echo "unknown argument '$1', expected --logs PATH, --out DIR or --small" >&2; exit 2 ;;
    esac
done
cd "$(dirname "$0")/.."
absolute() { case $1 in /*) echo "$1" ;; *) echo "$start_folder/$1" ;; esac; }
recipe=demo
if [ -n "$small" ]; then recipe=$PWD/scripts/demo_small.toml; fi
if [ -n "$logs" ]; then logs=$(absolute "$logs"); fi
if [ -n "$out" ]; then out=$(absolute "$out"); else out=$PWD/demo; fi
. scripts/environment.sh
mkdir -p "$out"
cd "$out"

step() { echo; echo "> $*"; "$@"; }
source_of_data=${logs:-synthetic${small:+ small}}
if [ -e data ] && [ "$(cat source.txt 2>/dev/null)" != "$source_of_data" ]; then
    echo "$out/data was made from other logs ($(cat source.txt 2>/dev/null || echo unknown)); give another --out" >&2
    exit 1
fi
if [ ! -e data ]; then
    echo "$source_of_data" >source.txt
    if [ -z "$logs" ]; then
        if [ ! -e logs ]; then step skiprec synthesize --out logs ${small:+--sessions 600 --items 1000}; fi
        logs=logs
    fi
    step skiprec prepare "$logs" --out data
else
    echo "using the dataset that is there: $out/data"
fi
step skiprec describe data
step study plan "$recipe" --data data --workers 2
step study run "$recipe" --data data --workers 2
study_name=$(basename "$recipe" .toml | tr _ -)-$(python -c 'import json; print(json.load(open("data/manifest.json"))["digests"]["dataset"][:8])')
step study confirm "$study_name" --workers 2
# Written beside, then put in the place of an earlier demo's.
rm -rf report.new
step study report "$study_name" --out report.new | sed 's/report\.new/report/'
if [ -e report/summary.json ]; then rm -rf report; fi
mv report.new report
step study status "$study_name"
echo
echo "the report is $out/report/report.html; to browse the runs: cd $out && study ui (with .venv/bin on the PATH)"
