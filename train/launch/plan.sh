# shellcheck shell=bash disable=SC2034,SC2154
# How many processes, and with which words accelerate is called. Read by launch.sh, which gives `root`, `python`, `die`,
# `resolve` and `folders`; plan gives `launch_args`, `num_processes`, `num_machines`, `local_processes` and `plain`
# (true: one process that asks nothing of accelerate, so python can take this shell's place).

# Devices that torch sees. Importing torch takes seconds, so only where there is anything to see.
count_gpus() {
    case ${ACCELERATE_USE_CPU:-} in 1 | [Tt]rue | TRUE | [Yy]es | on) echo 0 && return ;; esac
    if compgen -G '/dev/nvidia[0-9c]*' >/dev/null || [ -e /dev/kfd ] || [ -e /dev/dxg ] || [ -e /dev/dri ] || [ -e /dev/accel ]; then
        "$python" -c 'import torch; print(torch.accelerator.device_count())'
    else
        echo 0
    fi
}

launch_words() { printf '%s' "${LAUNCH_ARGS:-}" | xargs --no-run-if-empty printf '%s\0'; }

# Takes LAUNCH_ARGS apart: launch_args keeps the words (a configuration's path made absolute, --cpu taken out), and
# num_processes, num_machines, port, use_cpu and config_file are set where they are given.
read_launch_args() {
    local words=() index name value
    launch_words >/dev/null || die 2 "LAUNCH_ARGS cannot be split into words: $LAUNCH_ARGS" # <(...) below gives no status
    mapfile -d '' -t words < <(launch_words)
    for ((index = 0; index < ${#words[@]}; index++)); do
        name=${words[index]%%=*}
        case ${name//-/_} in
        __cpu) use_cpu=true && continue ;;
        __num_processes | __num_machines | __main_process_port | __config_file) ;;
        *)
            plain=false
            launch_args+=("${words[index]}")
            continue
            ;;
        esac
        if [ "$name" = "${words[index]}" ]; then
            index=$((index + 1))
            value=${words[index]:-}
        else
            value=${words[index]#*=}
        fi
        [ -n "$value" ] || die 2 "LAUNCH_ARGS: $name needs a value"
        case ${name//-/_} in
        __num_processes) num_processes=$value ;;
        __num_machines) num_machines=$value ;;
        __main_process_port) port=$value ;;
        __config_file)
            config_file=$(resolve "$value") || die 2 "LAUNCH_ARGS: there is no file $value in $(folders)"
            value=$config_file
            ;;
        esac
        launch_args+=("$name" "$value")
    done
    if [ ${#words[@]} -gt 0 ] && [ -z "$config_file" ]; then # accelerate reads this one when it is told no other
        value=${HF_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/huggingface}/accelerate/default_config.yaml
        [ ! -f "$value" ] || config_file=$value
    fi
}

read_config_file() { # fills in what LAUNCH_ARGS left to its configuration file
    local line facts
    [ -n "$config_file" ] || return 0
    line=$("$python" -m train.launch.configuration "$config_file") || exit 2
    read -r -a facts <<<"$line"
    num_processes=${num_processes:-${facts[0]}}
    num_machines=${num_machines:-${facts[1]}}
    use_cpu=${use_cpu:-${facts[2]}}
    [ "${facts[3]}" = none ] || port=${port:-${facts[3]}}
    distributed_type=${facts[4]}
    [ "${facts[5]}" = plain ] || plain=false
}

# Several nodes of a Slurm step: one launch.sh on each, all told where the first one is.
read_slurm() {
    local nodes=${SLURM_STEP_NUM_NODES:-${SLURM_NNODES:-1}} list=${SLURM_STEP_NODELIST:-${SLURM_JOB_NODELIST:-}} first
    [ "$nodes" -gt 1 ] && [ -z "$num_machines" ] || return 0
    [ -z "${SLURM_JOB_ID:-}" ] || [ -n "${SLURM_STEP_ID:-}" ] ||
        die 2 "Slurm gave this job $nodes nodes, but launch.sh runs on one of them only. Start it on each with" \
            "'srun --ntasks-per-node=1 ./launch.sh ...', or set LAUNCH_ARGS='--num_machines 1' to leave the others idle."
    [ "${SLURM_STEP_NUM_TASKS:-$nodes}" -eq "$nodes" ] ||
        die 2 "expected one task per node, found $SLURM_STEP_NUM_TASKS tasks on $nodes nodes: use srun --ntasks-per-node=1"
    first=$(scontrol show hostnames "$list" 2>/dev/null | head -n 1)
    [ -n "$first" ] || first=$(printf '%s' "$list" | sed -E 's/\[([^],-]+)[^]]*\].*/\1/; s/,.*//')
    num_machines=$nodes
    # Every node must come to the same port without asking: one of the job's own, below the ephemeral range.
    port=${port:-$((20000 + ${SLURM_JOB_ID:-0} % 10000))}
    launch_args+=(--num_machines "$nodes" --machine_rank "${SLURM_NODEID:-0}" --main_process_ip "$first" --main_process_port "$port")
    if [ -z "$num_processes" ]; then
        num_processes=$((nodes * (num_gpus > 1 ? num_gpus : 1)))
        launch_args+=(--num_processes "$num_processes")
    fi
}

# accelerate must be told to start several processes by --multi_gpu, on the CPU too (its --cpu and MULTI_CPU start one);
# ACCELERATE_USE_CPU then joins them by gloo. A configuration file or option that names another way is left its way.
add_how() {
    case $distributed_type in NO | MULTI_CPU) launch_args+=(--multi_gpu) ;; esac
    # 0: any free port, so that two jobs of one machine never collide.
    [ "$num_machines" -gt 1 ] || [ -n "$port" ] || launch_args+=(--main_process_port 0)
}

plan() {
    local num_gpus=0 port="" use_cpu="" config_file="" distributed_type=NO
    launch_args=() num_processes="" num_machines="" plain=true
    read_launch_args
    read_config_file
    case " ${launch_args[*]} " in *" --multi"[_-]"gpu "* | *" --use"[_-]* | *" --tpu"*) distributed_type=GIVEN ;; esac
    [ "$use_cpu" = true ] || num_gpus=$(count_gpus)
    read_slurm
    if [ -z "$num_processes" ]; then
        num_processes=$((num_gpus > 1 ? num_gpus : 1))
        launch_args+=(--num_processes "$num_processes")
        # A file of ours, so that a default one in the user's home changes nothing.
        [ -n "${LAUNCH_ARGS:-}" ] || launch_args+=(--config_file "$root/configs/accelerate/multi-gpu.yaml")
    fi
    num_machines=${num_machines:-1}
    [[ $num_processes =~ ^[1-9][0-9]*$ && $num_machines =~ ^[1-9][0-9]*$ && $num_processes -ge $num_machines ]] ||
        die 2 "LAUNCH_ARGS: expected whole numbers, --num_processes at least --num_machines and that at least 1;" \
            "found $num_processes and $num_machines"
    local_processes=$((num_processes / num_machines))
    if [ "$num_processes" -gt 1 ]; then
        plain=false
        [ "$num_gpus" -gt 0 ] || use_cpu=true
        add_how
    fi
    [ "$use_cpu" != true ] || export ACCELERATE_USE_CPU=true
}
