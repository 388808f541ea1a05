"""train/launch/plan.sh: how many processes are started, and with which words accelerate is called, on machines this one is not."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from tests.integration.launch.house import PYTHON, ROOT, clean_environment

SCRIPT = """
set -u
say() { printf '%s\\n' "$*" >&2; }
die() { local code=$1; shift; say "$*"; exit "$code"; }
root=$1 caller=$2 python=$3
cd "$root"
resolve() { case $1 in /*) [ -f "$1" ] && printf '%s' "$1" ;; *) [ -f "$root/$1" ] && printf '%s' "$root/$1" ;; esac; }
folders() { printf '%s' "$root"; }
source train/launch/plan.sh
count_gpus() { echo "$GPUS"; }
plan
printf '%s\\0' "$plain" "$num_processes" "$num_machines" "${ACCELERATE_USE_CPU:-}" ${launch_args[@]+"${launch_args[@]}"}
"""


@dataclass
class Plan:
    """What train/launch/plan.sh decided."""

    plain: bool
    num_processes: int
    num_machines: int
    use_cpu: str
    words: list[str]

    def value(self, option: str) -> str | None:
        """The word after an option, None if the option is not there."""
        return self.words[self.words.index(option) + 1] if option in self.words else None


def run_plan(folder: Path, num_gpus: int, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    environment = clean_environment() | {"GPUS": str(num_gpus), "HF_HOME": str(folder)} | variables
    command = ["bash", "-c", SCRIPT, "plan", str(ROOT), str(folder), PYTHON]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def planned(folder: Path, num_gpus: int = 0, **variables: str) -> Plan:
    done = run_plan(folder, num_gpus, variables)
    assert done.returncode == 0, done.stderr
    plain, num_processes, num_machines, use_cpu, *words = done.stdout.split("\0")[:-1]
    return Plan(plain == "true", int(num_processes), int(num_machines), use_cpu, words)


def refused(folder: Path, **variables: str) -> str:
    done = run_plan(folder, 0, variables)
    assert done.returncode == 2, done.stdout + done.stderr
    return done.stderr


@pytest.mark.parametrize(("num_gpus", "arguments"), [(0, ""), (1, ""), (0, "  "), (4, "--num_processes 1"), (4, "--num-processes=1")])
def test_one_process_is_plain_python(tmp_path: Path, num_gpus: int, arguments: str) -> None:
    plan = planned(tmp_path, num_gpus, LAUNCH_ARGS=arguments)
    assert (plan.plain, plan.num_processes, plan.use_cpu) == (True, 1, "")


def test_one_process_on_the_cpu_although_there_is_a_gpu(tmp_path: Path) -> None:
    plan = planned(tmp_path, 1, LAUNCH_ARGS="--cpu")
    assert (plan.plain, plan.num_processes, plan.use_cpu) == (True, 1, "true")


def test_one_process_that_asks_something_of_accelerate_goes_through_it(tmp_path: Path) -> None:
    plan = planned(tmp_path, 1, LAUNCH_ARGS="--num_processes 1 --dynamo_backend inductor")
    assert (plan.plain, plan.value("--dynamo_backend"), plan.value("--num_processes")) == (False, "inductor", "1")


def test_all_visible_gpus_are_used(tmp_path: Path) -> None:
    plan = planned(tmp_path, 4)
    assert (plan.plain, plan.num_processes, plan.use_cpu) == (False, 4, "")
    assert plan.value("--num_processes") == "4"
    assert plan.value("--config_file") == str(ROOT / "configs/accelerate/multi-gpu.yaml")
    assert plan.value("--main_process_port") == "0"


@pytest.mark.parametrize("arguments", ["--cpu --num_processes 2", "--num_processes=2", "--multi_gpu --num_processes 2"])
def test_several_cpu_processes_are_started_the_way_that_works(tmp_path: Path, arguments: str) -> None:
    plan = planned(tmp_path, 0, LAUNCH_ARGS=arguments)
    assert (plan.plain, plan.num_processes, plan.use_cpu) == (False, 2, "true")
    assert plan.words.count("--multi_gpu") == 1 and "--cpu" not in plan.words


def test_the_cpu_configuration(tmp_path: Path) -> None:
    plan = planned(tmp_path, 4, LAUNCH_ARGS="--config_file configs/accelerate/cpu-2.yaml")
    assert (plan.num_processes, plan.use_cpu) == (2, "true")
    assert plan.value("--config_file") == str(ROOT / "configs/accelerate/cpu-2.yaml")


def test_an_option_goes_before_its_configuration_file(tmp_path: Path) -> None:
    plan = planned(tmp_path, 8, LAUNCH_ARGS="--num_processes 3 --config_file configs/accelerate/multi-gpu.yaml")
    assert (plan.num_processes, plan.value("--num_processes"), plan.use_cpu) == (3, "3", "")


def test_a_configuration_file_keeps_its_own_way_of_distributing(tmp_path: Path) -> None:
    file = tmp_path / "a folder" / "fsdp.yaml"
    file.parent.mkdir()
    file.write_text("distributed_type: FSDP\nnum_processes: 2\nmain_process_port: 29777\nfsdp_config: {fsdp_version: 2}\n")
    plan = planned(tmp_path, 2, LAUNCH_ARGS=f"--config_file '{file}'")
    assert plan.words == ["--config_file", str(file)]
    assert (plan.plain, plan.num_processes) == (False, 2)


def test_the_users_default_configuration_counts_where_accelerate_reads_it(tmp_path: Path) -> None:
    (tmp_path / "accelerate").mkdir()
    (tmp_path / "accelerate" / "default_config.yaml").write_text("distributed_type: MULTI_GPU\nnum_processes: 6\n")
    assert planned(tmp_path, 2, LAUNCH_ARGS="--mixed_precision bf16").num_processes == 6
    assert planned(tmp_path, 2).num_processes == 2


def test_a_given_port_is_kept(tmp_path: Path) -> None:
    plan = planned(tmp_path, 2, LAUNCH_ARGS="--num_processes 2 --main_process_port 29600")
    assert plan.words.count("--main_process_port") == 1 and plan.value("--main_process_port") == "29600"


SLURM = {
    "SLURM_NNODES": "2",
    "SLURM_NODEID": "1",
    "SLURM_JOB_NODELIST": "gpu[07-08,11],login2",
    "SLURM_JOB_ID": "31415",
    "SLURM_STEP_ID": "0",
}


def test_slurm_joins_the_nodes(tmp_path: Path) -> None:
    plan = planned(tmp_path, 4, **SLURM)
    assert (plan.plain, plan.num_processes, plan.num_machines) == (False, 8, 2)
    given = {option: plan.value(option) for option in ("--num_processes", "--num_machines", "--machine_rank", "--main_process_ip")}
    assert given == {"--num_processes": "8", "--num_machines": "2", "--machine_rank": "1", "--main_process_ip": "gpu07"}
    assert (
        plan.value("--main_process_port") == planned(tmp_path, 4, **SLURM | {"SLURM_NODEID": "0"}).value("--main_process_port") == "21415"
    )
    assert "--multi_gpu" in plan.words


@pytest.mark.parametrize(("nodes", "first"), [("node1,node2", "node1"), ("node[3,5]", "node3"), ("a-b-[01-02]", "a-b-01")])
def test_slurm_first_node(tmp_path: Path, nodes: str, first: str) -> None:
    assert planned(tmp_path, 1, **SLURM | {"SLURM_JOB_NODELIST": nodes}).value("--main_process_ip") == first


def test_slurm_with_one_node_changes_nothing(tmp_path: Path) -> None:
    assert planned(tmp_path, 1, **SLURM | {"SLURM_NNODES": "1"}).plain
    assert planned(tmp_path, 1, **SLURM | {"SLURM_STEP_NUM_NODES": "1"}).plain


def test_slurm_misuse_is_refused_with_the_remedy(tmp_path: Path) -> None:
    outside_a_step = {key: value for key, value in SLURM.items() if key != "SLURM_STEP_ID"}
    assert "srun --ntasks-per-node=1" in refused(tmp_path, **outside_a_step)
    assert "found 8 tasks on 2 nodes" in refused(tmp_path, **SLURM, SLURM_STEP_NUM_TASKS="8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--config_file nowhere.yaml", "there is no file nowhere.yaml"),
        ("--num_processes two", "found two and 1"),
        ("--num_processes 0", "found 0 and 1"),
        ("--num_processes 1 --num_machines 2", "found 1 and 2"),
        ("--num_processes 'two", "cannot be split"),
        ("--cpu --num_processes", "--num_processes needs a value"),
        ("--config_file README.md", "not an accelerate configuration"),
    ],
)
def test_wrong_launch_args_are_refused(tmp_path: Path, arguments: str, message: str) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("# Not YAML: [")
    assert message in refused(tmp_path, LAUNCH_ARGS=arguments.replace("README.md", str(readme)))


@pytest.mark.parametrize("name", sorted(os.listdir(ROOT / "configs" / "accelerate")))
def test_accelerate_reads_our_configurations(name: str) -> None:
    config = load_config_from_file(str(ROOT / "configs" / "accelerate" / name))
    assert config.num_processes == 2 and config.use_cpu == (name == "cpu-2.yaml")
