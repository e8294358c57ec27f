#!/usr/bin/env bash
# SAMA's Table 8 and both halves of its Figure 1 (Choe et al. 2023), measured on one GPU in under 8 minutes:
#
#     bash benchmarks/gpu.sh OUT [--device cuda|cpu] [--sizes NAME ...] [--dtypes NAME ...] [--minutes N]
#
# Results go to OUT: cells/ (a JSON file a cell), table.txt, figures/, machine.txt. The same command goes on where the time
# ran out, or where it was interrupted. Without a GPU it says so and runs the tiny sizes on the CPU.
set -uo pipefail

usage() { sed -n '2,7s/^# \{0,1\}//p' "$0"; }

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
sweeps=$here/benchmarks/sweeps
out='' device='' minutes=8
sizes=() dtypes=()
while (($#)); do
    case $1 in
        --device) device=${2:?--device needs cuda or cpu}; shift 2 ;;
        --minutes) minutes=${2:?--minutes needs a whole number}; shift 2 ;;
        --sizes) shift; while (($#)) && [[ $1 != --* ]]; do sizes+=("$1"); shift; done ;;
        --dtypes) shift; while (($#)) && [[ $1 != --* ]]; do dtypes+=("$1"); shift; done ;;
        -h | --help) usage; exit 0 ;;
        -*) echo "gpu.sh: unknown option $1" >&2; usage >&2; exit 2 ;;
        *) [[ -z $out ]] || { echo "gpu.sh: one folder, not $out and $1" >&2; exit 2; }; out=$1; shift ;;
    esac
done
[[ -n $out ]] || { usage >&2; exit 2; }
[[ $minutes =~ ^[1-9][0-9]*$ ]] || { echo "gpu.sh: --minutes $minutes is no whole number of minutes" >&2; exit 2; }

python=${PYTHON:-$here/.venv/bin/python}
[[ -x $python ]] || python=$(command -v python3)
export PYTHONPATH=$here${PYTHONPATH:+:$PYTHONPATH}
"$python" -c 'import torch, tyro, pandas' 2>/dev/null || {
    echo "gpu.sh: $python lacks torch or the other dependencies: run \`python3 do.py check\` once, or set PYTHON" >&2
    exit 2
}
if [[ -z $device ]]; then
    device=$("$python" -c 'import torch; print("cuda" if torch.cuda.is_available() else "cpu")')
    [[ $device == cuda ]] || echo "gpu.sh: torch sees no GPU here: tiny sizes on the CPU, whose figures are no GPU's"
fi
[[ $device == cuda* || ${#sizes[@]} -gt 0 ]] || sizes=(tiny)
mkdir -p "$out" && [[ -w $out ]] || { echo "gpu.sh: cannot write to $out" >&2; exit 2; }

# The whole time, of which the last 30 s are for tables and figures; Table 8 may take 60 % of the rest.
deadline=$((minutes * 60 - 30))
begin=$SECONDS
left() { echo $((deadline - (SECONDS - begin))); }

"$python" - "$device" >"$out/machine.txt" <<'PY' || { echo "gpu.sh: no device $device here" >&2; exit 2; }
import sys
from benchmarks.measure import environment
for name, value in environment(device=sys.argv[1], dtype="float32").items():
    print(f"{name}: {value}")
PY

status=0
measure() { # measure SECONDS FILE FLAGS...: at most so long; Ctrl-C's signal keeps what is finished
    local seconds=$1 file=$2 rc
    shift 2
    if ((seconds < 10)); then
        echo "gpu.sh: out of time: $(basename "$file") $* is left for the same command again" >&2
        status=1
        return
    fi
    timeout --foreground -s INT -k 10 "$seconds" "$python" -m benchmarks sweep "$file" --out "$out" --device "$device" \
        ${dtypes[@]+--dtypes "${dtypes[@]}"} --figures False "$@" >"$out/sweep.log"
    rc=$?
    if ((rc == 124 || rc == 130 || rc == 137)); then
        echo "gpu.sh: out of time in $(basename "$file") $*: the same command goes on" >&2
    elif ((rc == 2)); then
        exit 2 # a wrong flag: the sweep has said so
    fi
    ((rc == 0)) || status=1
}

first=(${sizes[@]+--sizes "${sizes[0]}"})
measure $(($(left) * 6 / 10)) "$sweeps/table8.toml" ${first[@]+"${first[@]}"}
measure $(($(left) * 3 / 10)) "$sweeps/table8.toml" --estimators t1t2 --unroll 1 ${first[@]+"${first[@]}"}
if [[ $device == cuda* || ${#sizes[@]} -gt 1 ]]; then
    measure "$(left)" "$sweeps/figure1.toml" ${sizes[@]+--sizes "${sizes[@]}"}
else
    measure "$(left)" "$sweeps/figure1_small.toml"
fi
rm -f "$out/sweep.log"

"$python" -m benchmarks table "$out" || status=1
"$python" -m benchmarks figures "$out" || status=1
echo "gpu.sh: $((SECONDS - begin)) s. Everything is in $out"
exit $status
