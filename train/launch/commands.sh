# shellcheck shell=bash disable=SC2154
# The commands of launch.sh that are Python modules of this folder, run in the environment it made. Read by launch.sh, which gives
# `root`, `caller`, `die`, `resolve` and `folders`; environment.sh gives `set_up` and `python`.

declare -A modules=(
    [train]=train [reranker]=train.reranker [mine]=train.mining
    [eval]=eval [compare]=eval.compare [choices]=eval.choices
    [rerank]=rerank [convert]=rerank.convert
    [export]=train.export [soup]=train.soup [wise]=train.wise
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

mine() { # mine CONFIG [KEY=VALUE ...]: from this folder, which the paths of a configuration are relative to, as in training
    local config
    config=$(resolve "$1") || die 2 "expected a configuration file after mine; there is no file $1 in $(folders)"
    shift
    caller=$root
    run_module mine "$config" "$@"
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
