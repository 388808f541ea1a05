#!/usr/bin/env bash
# One command from a bare machine to a tuned SigLIP: set up if needed, then train. `./launch.sh --help` says the rest.
set -u

usage() {
    cat <<'TEXT'
./launch.sh                                   set up, then run configs/demo.yaml: the whole job on the embedded default
./launch.sh CONFIG.yaml [key.path=value ...]  set up, then train as CONFIG.yaml says; the same command again resumes
./launch.sh DATA [key.path=value ...]         the same for a data file, folder or hub id as configs/small.yaml says, under the file's name
./launch.sh COMMAND ...                       set up, then a command; `./launch.sh COMMAND --help` says what it takes
./launch.sh test [pytest arguments]           set up, then ruff, mypy and every test; with arguments, pytest alone
./launch.sh --help | --version                this text; name and version

  train CONFIG.yaml [key.path=value ...]      the same as without the word
  init DATA                                   look at a data set, and write a first configuration for it
  check CONFIG.yaml [key.path=value ...]      check data, weights and choice sets, and decode every picture, without training
  mine CONFIG.yaml [key.path=value ...]       mine hard negatives once, without training; or, with a checkpoint and pairs alone,
                                              mine --model MODEL --data PAIRS
  triplets RUN_FOLDER                         what a run has mined, for other trainers
  eval                                        measure checkpoints on labelled pairs, alone and reranked
  compare RUN_A RUN_B [RUN_C ...]             compare finished reports with the first, query by query
  choices                                     measure checkpoints on a choice set
  embed                                       vectors of images and captions, for FAISS, Qdrant, LanceDB
  rerank                                      rerank your own pictures and captions, without labels
  explore RUN_OR_MODEL                        a page to search pictures with a sentence or a picture, both stages side by side
  export RUN_FOLDER                           a checkpoint of a run as plain Hugging Face weights; --push ORG/NAME sends it to the hub
  soup CHECKPOINT CHECKPOINT ...              average the weights of checkpoints
  wise RUN_FOLDER                             weights between base and tuned
  study CONFIG.yaml [key.path=value ...]      several configurations, several seeds: which is better, by how much
  reranker CONFIG.yaml [key.path=value ...]   tune the reranker
  convert                                     a reranker published as a pickle, as a folder of safetensors
  runs [FOLDER ...]                           every run, its state, its R@1 and what it gained, one a line
  config [siglip | reranker]                  every key of a configuration, as a JSON schema
  environment                                 versions, devices, cores, memory and disks, as an issue report needs them
  python [ARGUMENT ...]                       the environment's Python, for which this folder's packages can be imported

Relative paths on the command line, those of key.path=value too, are as seen from the folder of the call, or else from the folder of
launch.sh; those inside a configuration as seen from the folder of launch.sh.

An active environment that satisfies pyproject.toml is used as it is; otherwise .venv is made here, once. It holds
2 GB with torch's build for CPUs (measured 2026-11-30, Python 3.11, x86_64; 0.5 GB to download) and several more with CUDA's.

  LAUNCH_ARGS      arguments for `accelerate launch`, for example
                     LAUNCH_ARGS="--config_file configs/accelerate/cpu-2.yaml"   two processes on the CPU
                     LAUNCH_ARGS="--multi_gpu --num_processes 2"                 two of the GPUs
                   Without it: all visible GPUs, or one process. Under `srun --ntasks-per-node=1`: all nodes of the step.
  OMP_NUM_THREADS  threads of each process; where it is unset, several processes share the cores evenly

Exit codes: 0 done, 2 bad configuration or data, 3 no readable checkpoint to resume from, 4 could not write,
5 loss, gradient or weights not finite, 6 out of memory, 130 stopped by Ctrl-C, 143 by SIGTERM, SIGHUP or SIGUSR1, with a checkpoint
written.
TEXT
}

say() { printf 'launch.sh: %s\n' "$*" >&2; }

die() { # die EXIT_CODE MESSAGE
    local code=$1
    shift
    say "$*"
    exit "$code"
}

resolve() { # prints the absolute path of file $1, as seen from the folder of the call or else from this one
    case $1 in
    /*) [ -f "$1" ] && printf '%s' "$1" ;;
    *) { [ -f "$caller/$1" ] && printf '%s' "$caller/$1"; } || { [ -f "$root/$1" ] && printf '%s' "$root/$1"; } ;;
    esac
}

input() { # prints the absolute path of a configuration, data file or data folder $1, or the id of a data set on the hub as it is
    local place
    resolve "$1" && return
    for place in "$caller/" "$root/"; do
        case $1 in /*) place="" ;; esac
        [ -d "$place$1" ] && printf '%s' "$place$1" && return
    done
    case $1 in *.yaml | *.yml | *.json | *.jsonl | *.ndjson | *.csv | *.tsv | *.txt | *.parquet | *.zip | *.tar) return 1 ;; esac
    [[ $1 =~ ^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*(:[A-Za-z0-9._-]+)?(@[A-Za-z0-9._/-]+)?$ ]] && [ ! -e "$caller/${1%%/*}" ] &&
        [ ! -e "$root/${1%%/*}" ] && printf '%s' "$1"
}

folders() { # prints where resolve looks
    if [ "$caller" -ef "$root" ]; then printf '%s' "$root"; else printf '%s' "$caller or $root"; fi
}

run_tests() { # run_tests [PYTEST_ARGUMENT ...]
    local failed=0 status cores
    set_up test
    if [ $# -eq 0 ]; then
        cores=$(env -u OMP_NUM_THREADS nproc) # nproc would count the threads asked for
        if [ "$cores" -gt 1 ]; then           # a file's tests stay together, for they share fixtures; the longest files come first
            # A worker that crashes ends the run: a new one would be dealt the same file, and crash, for ever.
            set -- -n $((cores < 8 ? cores : 8)) --dist loadscope --no-loadscope-reorder --max-worker-restart=0
            export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
        fi
        "$python" -m ruff check . || failed=1
        "$python" -m mypy || failed=1
        [ "$failed" -eq 0 ] || say "ruff or mypy found faults, above: this command fails whatever the tests say"
    fi
    "$python" -m pytest -q "$@"
    status=$?
    exit $((status != 0 ? status : failed))
}

from_caller() { # from_caller KEY=PATH: prints it; a path that leads to something as seen from the folder of the call becomes absolute
    local path=${1#*=}
    [[ $1 == *=* ]] || { printf '%s' "$1" && return; }
    case ${1%%=*} in
    data.source | data.image_root | data.truth | mining.pool | model.base | rerank.model | train.begin_at)
        [ "${path:0:1}" != / ] && [ -n "$path" ] && [ ! "$caller" -ef "$root" ] && [ -e "$caller/$path" ] && path=$caller/$path
        printf '%s=%s' "${1%%=*}" "$path"
        ;;
    *) printf '%s' "$1" ;;
    esac
}

train() { # train COMMAND CONFIG [KEY=VALUE ...]
    local config module=${modules[$1]}
    local words=() word
    config=$(input "$2") || die 2 "expected a configuration file or a data set after $1; there is no file $2 in $(folders)"
    shift 2
    for word; do words+=("$(from_caller "$word")"); done
    set -- ${words[@]+"${words[@]}"}
    set_up ""
    plan
    if $plain; then
        exec "$python" -m "$module" "$config" "$@"
    fi
    if [ -z "${OMP_NUM_THREADS:-}" ]; then # the launcher would set 1
        OMP_NUM_THREADS=$(($(nproc) / local_processes))
        export OMP_NUM_THREADS=$((OMP_NUM_THREADS > 0 ? OMP_NUM_THREADS : 1))
    fi
    say "$num_processes process(es) on $num_machines machine(s), $OMP_NUM_THREADS thread(s) each: accelerate launch ${launch_args[*]}"
    supervise "$python" -m accelerate.commands.launch "${launch_args[@]}" -m "$module" "$config" "$@"
}

caller=$PWD
root=$(cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")" && pwd) && cd "$root" || exit 1
[ -f train/launch/plan.sh ] || die 2 "expected the folder train/launch next to launch.sh, in $root. With sbatch: sbatch --wrap './launch.sh ...'"
source train/launch/environment.sh
source train/launch/plan.sh
source train/launch/supervise.sh

case ${1:-} in
-h | --help) usage ;;
--version) sed -n 's/^\(name\|version\) = "\(.*\)"$/\2/p' pyproject.toml | paste -sd " " ;;
test)
    shift
    run_tests "$@"
    ;;
-*)
    usage >&2
    die 2 "unknown option $1"
    ;;
train | reranker | mine | check | study)
    if [ $# -eq 1 ] || asks_for_help "$@" || { [ "$1" = mine ] && [ "${2:0:1}" = - ]; }; then
        run_module "$@"
    fi
    case $1 in
    mine | check | study) from_here "$@" ;;
    *) train "$@" ;;
    esac
    ;;
python) in_environment "${@:2}" ;;
'') train train configs/demo.yaml ;;
*)
    [ -z "${modules[$1]:-}" ] || run_module "$@"
    if ! input "$1" >/dev/null; then
        near=$(nearest "$1")
        die 2 "expected a command, a configuration file, a data set or --help; there is no command and no file $1 in $(folders)${near:+; did you mean $near?}"
    fi
    train train "$@"
    ;;
esac
