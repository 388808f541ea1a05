# shellcheck shell=bash disable=SC2154
# Several processes: start their launcher, pass signals to the trainers, leave none behind, return the trainers' own exit code.
# Read by launch.sh, which gives `say`, `die` and `local_processes`.
#
# Every trainer finds TRAIN_EXIT_FILE in its environment and writes its exit code to $TRAIN_EXIT_FILE.RANK when it ends:
# accelerate itself makes 1 of every failure. The same variable marks the processes of this launch.

marked() { grep -lszFx -- "TRAIN_EXIT_FILE=$marks/exit" /proc/[0-9]*/environ | cut -d/ -f3; }

# The trainers: marked processes whose parent is the launcher or, once that is gone, is not marked. Signals go to them and
# not to the launcher, which would kill them 30 s later.
trainers() {
    local pid parent all
    all=" $(marked | tr '\n' ' ')"
    for pid in $all; do
        read -r parent 2>/dev/null <"/proc/$pid/stat" || continue
        read -r _ parent _ <<<"${parent##*) }"
        [ "$pid" = "$launcher" ] && continue
        [ "$parent" = "$launcher" ] || [[ $all != *" $parent "* ]] && echo "$pid"
    done
}

forward() { # forward SIGNAL
    local pids
    interrupted=true
    case $1 in INT) stopped_by=INT ;; *) stopped_by=TERM ;; esac # a dropped ssh or a warning of Slurm's is a SIGTERM
    mapfile -t pids < <(trainers)
    if [ ${#pids[@]} -gt 0 ]; then
        kill -s "$1" "${pids[@]}" 2>/dev/null
    elif [ -n "$launcher" ]; then # too early for trainers; the launcher itself would die of a SIGUSR1
        kill -s "$stopped_by" "$launcher" 2>/dev/null
    fi
}

end_strays() { # trainers that outlived their launcher are asked to stop and, a minute later, made to
    local pids
    mapfile -t pids < <(trainers)
    [ ${#pids[@]} -gt 0 ] || return 0
    say "the launcher is gone; stopping its trainers: ${pids[*]}"
    kill -s TERM "${pids[@]}" 2>/dev/null
    SECONDS=0
    while mapfile -t pids < <(marked) && [ ${#pids[@]} -gt 0 ]; do
        [ "$SECONDS" -lt 60 ] || kill -s KILL "${pids[@]}" 2>/dev/null
        sleep 0.2
    done
}

# Prints the exit code of the whole. One trainer that fails makes the launcher stop the others, so that their 143 counts
# only if the stop came from outside or if all of them say so.
verdict() { # verdict LAUNCHER_STATUS
    local file code other="" num_stopped=0 num_done=0
    while read -r file; do
        code=""
        read -r code 2>/dev/null <"$file"
        case $code in
        0) num_done=$((num_done + 1)) ;;
        2 | 3 | 4 | 5 | 6) echo "$code" && return ;;
        143) num_stopped=$((num_stopped + 1)) ;;
        '' | *[!0-9]*) ;; # killed before it could write
        *) other=${other:-$code} ;;
        esac
    done < <(printf '%s\n' "$marks"/exit.* | sort -V)
    if [ "$num_stopped" -gt 0 ] && { [ -n "$stopped_by" ] || [ "$num_stopped" -eq "$local_processes" ]; }; then
        echo 143
    elif [ -n "$other" ]; then
        echo "$other"
    elif [ "$num_done" -eq "$local_processes" ]; then
        echo 0
    elif [ -n "$stopped_by" ]; then # before the trainers could answer it
        echo $((128 + $(kill -l "$stopped_by")))
    else
        echo $(($1 == 0 ? 1 : $1))
    fi
}

supervise() { # supervise COMMAND ...: runs it as a child and exits as the trainers did
    local status=1 code signal tie=()
    marks=$(mktemp -d) || die 4 "could not make a temporary folder in ${TMPDIR:-/tmp}"
    trap 'rm -rf -- "$marks"' EXIT
    # Even a SIGKILL of this script then stops the launcher, and the launcher its trainers.
    setpriv --pdeathsig TERM true 2>/dev/null && tie=(setpriv --pdeathsig TERM)
    interrupted=false stopped_by="" launcher=""
    for signal in TERM INT HUP USR1; do
        # shellcheck disable=SC2064  # the name is meant as it is now
        trap "forward $signal" "$signal"
    done
    set -m # a process group of its own: Ctrl-C reaches this script alone, which passes it on once
    env TRAIN_EXIT_FILE="$marks/exit" "${tie[@]}" "$@" </dev/null &
    launcher=$!
    set +m
    [ -z "$stopped_by" ] || kill -s "$stopped_by" "$launcher" # it came in between
    while :; do
        interrupted=false
        wait "$launcher"
        case $? in
        127) ;; # already waited for: its status is known
        *) status=$? ;;
        esac
        $interrupted || break
    done
    end_strays
    code=$(verdict "$status")
    # The launcher ends every failure with a traceback of its own, which is not where to look.
    [ "$code" -eq 0 ] || say "ended with exit code $code; the reason is in the trainers' own messages, above the launcher's"
    exit "$code"
}
