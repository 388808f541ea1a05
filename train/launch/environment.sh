# shellcheck shell=bash disable=SC2154
# The Python environment: the active one if it satisfies pyproject.toml, else .venv, made and filled once.
# Read by launch.sh, which gives `root`, `say` and `die`; set_up gives `python`.

# Sets `python` if the active environment satisfies pyproject.toml with the extra $1 (may be empty); else sets `lacks` and fails.
# Our own .venv does not count when it is the active one: it is kept up to date as if it were not.
use_active() {
    local candidate answer
    if [ -n "${VIRTUAL_ENV:-}" ]; then
        candidate=$VIRTUAL_ENV/bin/python
    elif [ -n "${CONDA_PREFIX:-}" ]; then
        candidate=$CONDA_PREFIX/bin/python
    else
        candidate=$(command -v python3 || command -v python) || return 1
    fi
    [ "$(dirname -- "$candidate")" -ef "$root/.venv/bin" ] && return 1
    if answer=$("$candidate" "$root/train/launch/requirements.py" "$root/pyproject.toml" "$1" 2>/dev/null); then
        python=$answer
        say "using the active environment, $python"
    else
        lacks="the active environment ($candidate) is not used: it lacks ${answer:-a working Python >= 3.11}"
        return 1
    fi
}

stamp() { # stamp EXTRA: the file that marks a complete installation
    printf '%s' "$root/.venv/installed${1:+-$1}"
}

fingerprint() { cat pyproject.toml constraints.txt | sha256sum; }

# True if .venv holds what pyproject.toml and constraints.txt say today, with the extra $1 if that is not empty.
is_installed() {
    local now mark
    now=$(fingerprint)
    for mark in "$(stamp "$1")" "$(stamp test)"; do
        [ -x .venv/bin/python ] && [ -f "$mark" ] && [ "$(cat "$mark")" = "$now" ] && return 0
    done
    return 1
}

find_python() { # prints the first interpreter that can make .venv
    local name found=""
    for name in python3 python3.13 python3.12 python3.11 python3.14 python; do
        "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
        found=$name
        "$name" -c 'import ensurepip, venv' 2>/dev/null && command -v "$name" && return 0
    done
    [ -n "$found" ] && die 1 "$found has no venv module. Install it (Debian, Ubuntu: apt-get install python3-venv) and run this again."
    die 1 "expected Python >= 3.11, found $(python3 --version 2>/dev/null || echo none). Install one and run this again."
}

free_space() { df -Ph -- "$root" | awk 'NR == 2 { print $4 "B" }'; }

install() { # install EXTRA: only a complete installation is marked as such
    local maker
    if ! .venv/bin/python -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        maker=$(find_python) || exit 1
        "$maker" -m venv --clear .venv || die 1 "could not make $root/.venv with $maker (its message is above)"
    fi
    [ -n "$lacks" ] && say "$lacks"
    say "installing into $root/.venv, once, with pip: torch, transformers and what they need, as constraints.txt pins them."
    say "With torch's build for CPUs that is 2 GB (0.5 GB to download), with CUDA's several more; $(free_space) are free. It takes minutes:"
    rm -f -- "$(stamp "")" "$(stamp test)"
    .venv/bin/python -m pip install --progress-bar off --disable-pip-version-check -c constraints.txt -e ".${1:+[$1]}" |
        grep --line-buffered -E '^ *(Downloading|Using cached|Processing|Building|Installing) ' | grep --line-buffered -v '\.metadata' >&2
    [ "${PIPESTATUS[0]}" -eq 0 ] ||
        die 1 "the installation failed (pip's message is above). It is not marked as complete: the same command tries again."
    fingerprint >"$(stamp "$1")"
}

set_up() { # set_up EXTRA: sets `python`, installing first where that is needed
    lacks=""
    use_active "$1" && return
    if ! is_installed "$1"; then
        # The folder itself is the lock: nothing to clean up, and it is free again however this process and pip end.
        exec 9<"$root"
        if command -v flock >/dev/null && ! flock --nonblock 9; then
            say "waiting for another launch.sh that is setting up"
            flock 9
        fi
        is_installed "$1" || install "$1"
        exec 9<&-
    fi
    python=$root/.venv/bin/python
    say "using $root/.venv, $("$python" --version)"
}

# The commands of launch.sh that are Python modules of this folder, run in that environment; launch.sh gives `root`, `caller`, `die`,
# `input` and `folders` as well.

declare -A modules=(
    [train]=train [reranker]=train.reranker [mine]=train.mining
    [eval]=eval [compare]=eval.compare [choices]=eval.choices
    [rerank]=rerank [convert]=rerank.convert
    [export]=train.export [soup]=train.soup [wise]=train.wise [study]=train.study
    [init]=train.init [config]=train.config [environment]=train.launch.environment [runs]=train.launch.runs [check]=train
)

in_environment() { # in_environment PYTHON_ARGUMENT ...: from the folder of the call, with this folder's packages, in this shell's place
    set_up ""
    cd -- "$caller" || die 2 "the folder of the call, $caller, is not there any more"
    PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} exec "$python" "$@"
}

run_module() { # run_module COMMAND [ARGUMENT ...]; -P: a train.py or eval/ in the folder of the call is not taken for ours
    local module=${modules[$1]}
    shift
    in_environment -P -m "$module" "$@"
}

from_here() { # from_here COMMAND CONFIG [ARGUMENT ...]: in this folder, which the paths of a configuration are relative to, as in training
    local command=$1 config words=() word previous=""
    config=$(input "$2") || die 2 "expected a configuration file or a data set after $1; there is no file $2 in $(folders)"
    shift 2
    for word; do # a path of the command line is as seen from the folder of the call
        word=$(from_caller "$word")
        [ "$previous" = --output ] && [ "${word:0:1}" != / ] && word=$caller/$word
        words+=("$word") previous=$word
    done
    caller=$root
    [ "$command" = check ] && words+=(--check-images)
    run_module "$command" "$config" "${words[@]}"
}

asks_for_help() { # true if an argument does
    local word
    for word; do
        case $word in -h | --help) return 0 ;; esac
    done
    return 1
}

distance() { # distance WORD OTHER: prints how many letters to change, add or take away make one of the other
    local row=() above diagonal i j
    for ((j = 0; j <= ${#2}; j++)); do row[j]=$j; done
    for ((i = 1; i <= ${#1}; i++)); do
        diagonal=${row[0]} row[0]=$i
        for ((j = 1; j <= ${#2}; j++)); do
            above=${row[j]}
            [ "${1:i-1:1}" = "${2:j-1:1}" ] || diagonal=$((diagonal + 1))
            ((diagonal <= above + 1)) || diagonal=$((above + 1))
            ((diagonal <= row[j - 1] + 1)) || diagonal=$((row[j - 1] + 1))
            row[j]=$diagonal diagonal=$above
        done
    done
    printf '%s' "${row[${#2}]}"
}

nearest() { # nearest WORD: prints the command nearest to a mistyped one, if one is near: two letters, or the same first three
    local name found="" least=3 far
    case $1 in *[./=]*) return ;; esac # a path or a value
    for name in "${!modules[@]}" python test; do
        far=$(distance "$1" "$name")
        [ "$far" -le 2 ] || [ "${#1}" -lt 3 ] || [ "${1:0:3}" != "${name:0:3}" ] || far=2
        if [ "$far" -lt "$least" ] && [ "$far" -lt "${#1}" ]; then
            least=$far found=$name
        fi
    done
    printf '%s' "$found"
}
