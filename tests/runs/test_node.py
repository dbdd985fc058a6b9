"""One process a machine takes all of its GPUs, several their shares; the examples of launches are whole."""

import importlib.util
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cnnjax.cli import main
from cnnjax.errors import UserError
from cnnjax.runs import node, processes

EIGHT = {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}


def slurm(tasks: str, local: int, machine: int = 0, **more: str) -> dict[str, str]:
    told = {"SLURM_STEP_TASKS_PER_NODE": tasks, "SLURM_LOCALID": str(local), "SLURM_NODEID": str(machine)}
    return EIGHT | told | more


def mpi(count: int, local: int, **more: str) -> dict[str, str]:
    told = {"OMPI_COMM_WORLD_LOCAL_SIZE": str(count), "OMPI_COMM_WORLD_LOCAL_RANK": str(local)}
    return EIGHT | told | more


@pytest.mark.parametrize(
    ("told", "gpus"),
    [
        ({}, []),
        (EIGHT, []),
        (slurm("1(x4)", 0, 3), []),
        (slurm("8(x2)", 5), [5]),
        (slurm("2(x2),4", 1, 1), [4, 5, 6, 7]),
        (slurm("2(x2),4", 1, 2), [2, 3]),
        (slurm("2", 1, SLURM_GPUS_PER_TASK="a100:4", SLURM_GPUS_ON_NODE="8"), [4, 5, 6, 7]),
        # Slurm has bound the GPUs to the tasks: each sees no more than its own
        (slurm("8", 5, CUDA_VISIBLE_DEVICES="0"), []),
        (slurm("2", 1, CUDA_VISIBLE_DEVICES="0,1,2,3", SLURM_GPUS_ON_NODE="8"), []),
        (slurm("2", 1, CUDA_VISIBLE_DEVICES="0,1,2,3", SLURM_GPUS_PER_TASK="4"), []),
        (slurm("4", 2, JAX_PLATFORMS="cpu"), []),
        (slurm("4", 2, JAX_PLATFORMS="cuda,cpu"), [4, 5]),
        (mpi(1, 0), []),
        (mpi(8, 7), [7]),
        (mpi(4, 1), [2, 3]),
        (mpi(2, 1, CUDA_VISIBLE_DEVICES="GPU-1f,GPU-2a,-1,GPU-3c"), [1]),
        (mpi(2, 1, CUDA_VISIBLE_DEVICES=""), []),
        # inside of a Slurm job, which tells of the daemon of Open MPI, one a machine with all GPUs
        (slurm("1(x2)", 0, 1) | mpi(8, 5), [5]),
        (slurm("1(x2)", 0, SLURM_GPUS_PER_TASK="8", SLURM_GPUS_ON_NODE="8") | mpi(4, 1), [2, 3]),
        (slurm("1(x2),2", 0, 2) | mpi(2, 1), [4, 5, 6, 7]),
        (slurm("2", 1, SLURM_NODEID=""), [4, 5, 6, 7]),
    ],
)
def test_a_process_takes_its_share_of_the_gpus_of_its_machine(told, gpus):
    assert node.own_gpus(told) == gpus


@pytest.mark.parametrize(
    ("told", "name"),
    [
        (slurm("2", 1, SLURM_LOCALID="x"), "SLURM_LOCALID=x"),
        (slurm("2", 1, SLURM_NODEID="-1"), "SLURM_NODEID=-1"),
        (slurm("2(3)", 1), r"SLURM_STEP_TASKS_PER_NODE=2\(3\)"),
        (mpi(2, 1, OMPI_COMM_WORLD_LOCAL_RANK="1.0"), "OMPI_COMM_WORLD_LOCAL_RANK=1.0"),
        (mpi(2, 1, OMPI_COMM_WORLD_LOCAL_SIZE="two"), "OMPI_COMM_WORLD_LOCAL_SIZE=two"),
    ],
)
def test_a_variable_of_a_cluster_that_is_no_number_is_named(told, name):
    with pytest.raises(UserError, match=f"^{name} must be a number"):
        node.own_gpus(told)


def test_the_shares_of_a_machine_are_all_of_its_gpus_and_no_one_twice(tmp_path):
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidia3", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    assert node.visible_gpus({}, tmp_path) == 4
    for count in (2, 4):
        assert sorted(gpu for i in range(count) for gpu in node.share(4, i, count, "")) == [0, 1, 2, 3]
    with pytest.raises(UserError, match="3 processes cannot share 4 GPUs equally; allowed: 1, 2, 4, or"):
        node.share(4, 0, 3, "--processes=3")
    with pytest.raises(
        UserError, match=r"^SLURM_STEP_TASKS_PER_NODE=3\(x2\): 3 processes cannot share 8 GPUs"
    ):
        node.own_gpus(slurm("3(x2)", 0))


JOINING = """
import os, sys, jax
from cnnjax.runs import processes
for explicit in (False, True):
    port = os.environ["JAX_COORDINATOR_PORT"]
    given = (f"127.0.0.1:{port}", 1, 0) if explicit else (None, None, None)
    processes.join(*given, hang_seconds=10)
    print(jax.config._read("jax_cuda_visible_devices"), jax._src.distributed.global_state.num_processes)
    jax.distributed.shutdown()
"""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize("manager", ["Slurm", "Open MPI"])
def test_jax_is_given_all_gpus_of_a_machine_with_one_process(manager):
    """Its own default is the first alone; detected or by an explicit coordinator."""
    told = {
        "Slurm": {
            **slurm("1", 0),
            **{"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "localhost"},
            **{"SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
        },
        "Open MPI": {
            **mpi(1, 0),
            "OMPI_MCA_orte_hnp_uri": "4096.0;tcp://127.0.0.1:34911",
            **{"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"},
        },
    }[manager]
    env = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"} | told
    env["JAX_COORDINATOR_PORT"] = str(free_port())
    done = subprocess.run([sys.executable, "-c", JOINING], capture_output=True, text=True, env=env)
    assert done.stdout == "all 1\nall 1\n", done.stderr


def test_an_explicit_coordinator_wins_over_what_a_cluster_tells(monkeypatch):
    """Also in a pod of Kubernetes, where asking would need a package and a right."""
    for name, value in slurm("1", 0, SLURM_JOB_ID="1", SLURM_STEP_NODELIST="n", SLURM_PROCID="7").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    calls = []
    monkeypatch.setattr("jax.distributed.initialize", lambda *words, **more: calls.append((words, more)))
    processes.join("here:1", 2, 1, hang_seconds=10)
    assert calls[0][0] == ("here:1", 2, 1, [])
    assert calls[0][1]["cluster_detection_method"] == "deactivate"
    monkeypatch.setenv("JAX_LOCAL_DEVICE_IDS", "3")  # JAX reads it itself
    processes.join("here:1", 2, 1, hang_seconds=10)
    assert calls[1][0] == ("here:1", 2, 1, None)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (IndexError("list index out of range"), "IndexError: list index out of range"),
        (KeyError("OMPI_COMM_WORLD_SIZE"), "KeyError: 'OMPI_COMM_WORLD_SIZE'"),
        (TypeError("'NoneType' object is not iterable"), "TypeError: 'NoneType' object"),
        (type("ConfigException", (Exception,), {})("no\nservice"), "ConfigException: no service"),
        (RuntimeError("DEADLINE_EXCEEDED"), "DEADLINE_EXCEEDED"),
    ],
)
@pytest.mark.parametrize("coordinator", ["here:1", None])
def test_whatever_jax_raises_while_it_joins_is_one_line_with_the_way_out(
    coordinator, error, words, monkeypatch
):
    def initialize(*_, **__):
        raise error

    monkeypatch.setattr("jax.distributed.initialize", initialize)
    monkeypatch.setattr(processes, "_detection", lambda _: None)
    explicit = (coordinator, 2, 1) if coordinator else (None, None, None)
    with pytest.raises(UserError, match=f"^--distributed: {words}.*; give --coordinator=HOST:PORT") as told:
        processes.join(*explicit, hang_seconds=10)
    assert "\n" not in str(told.value) and ("srun" in str(told.value)) == (coordinator is None)


@pytest.mark.parametrize("address", ["here", "here:", "here:port", ":8476", "::1", "http://here"])
def test_an_address_without_host_or_port_is_refused_wherever_it_is_from(address, monkeypatch):
    monkeypatch.setattr("jax.distributed.initialize", lambda *_, **__: None)
    with pytest.raises(UserError, match=f"^--coordinator={address} must be HOST:PORT"):
        processes.join(address, 2, 1, hang_seconds=10)
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", address)
    with pytest.raises(UserError, match=f"^JAX_COORDINATOR_ADDRESS={address} must be HOST:PORT"):
        processes.join(None, None, None, hang_seconds=10)
    processes.join("[fe80::1]:8476", 2, 1, hang_seconds=10)


@pytest.mark.skipif(bool(importlib.util.find_spec("kubernetes")), reason="the package kubernetes is here")
def test_a_pod_without_the_package_that_asks_kubernetes_is_told_the_extra(monkeypatch):
    for name in ("SLURM_PROCID", "OMPI_MCA_orte_hnp_uri", "TPU_WORKER_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    with pytest.raises(
        UserError, match=r"pip install -e '.\[kubernetes\]' in a checkout of cnnjax, or give --coordinator"
    ):
        processes.join(None, None, None, hang_seconds=10)


LAUNCHING = """
import sys
from cnnjax.cli import train
sys.executable, train.COMMAND = "/bin/sh", ["-c", "echo [$JAX_LOCAL_DEVICE_IDS]"]
sys.exit(train._run_once(["train"], int(sys.argv[1]))[0])
"""


@pytest.mark.parametrize(("count", "told"), [(2, ["[0,1]", "[2,3]"]), (1, ["[]"])])
def test_launch_gives_each_process_its_gpus(count, told):
    env = {name: value for name, value in os.environ.items() if name != "JAX_LOCAL_DEVICE_IDS"}
    env |= {"JAX_PLATFORMS": "cuda", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    words = [sys.executable, "-c", LAUNCHING, str(count)]
    done = subprocess.run(words, capture_output=True, text=True, env=env)
    assert (done.returncode, sorted(done.stdout.split())) == (0, told), done.stderr


@pytest.mark.parametrize(
    ("processes", "told", "words"),
    [
        (3, {}, "--processes=3: 3 processes cannot share 4 GPUs equally; allowed: 1, 2, 4, or "),
        (
            2,
            {"CUDA_VISIBLE_DEVICES": "0"},
            "--processes=2: 2 processes cannot share 1 GPU equally; allowed: 1, ",
        ),
        (2, {"JAX_LOCAL_DEVICE_IDS": "0,1"}, "JAX_LOCAL_DEVICE_IDS=0,1 is of one process"),
    ],
)
def test_launch_refuses_shares_that_do_not_come_out(processes, told, words, monkeypatch, capsys):
    own = {"JAX_PLATFORMS": "cuda", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    for name, value in (own | told).items():
        monkeypatch.setenv(name, value)
    assert main.run(["launch", f"--processes={processes}", "--", "train", "--workdir=x"]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert ("JAX_PLATFORMS=cpu" in error) != ("CUDA_VISIBLE_DEVICES" in error)


EXAMPLES = Path(__file__).parents[2] / "examples" / "launch"


def scripts(path: Path) -> list[str]:
    """The shell scripts in an example."""
    if path.suffix != ".yaml":
        return [path.read_text()]
    yaml = pytest.importorskip("yaml")
    *_, last = yaml.safe_load_all(path.read_text())
    if last.get("kind") == "JobSet":
        pods = last["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
        return [shlex.join(pods["containers"][0]["command"])]
    return [last["setup"], last["run"]]


@pytest.mark.skipif(not shutil.which("bash"), reason="bash reads the examples")
@pytest.mark.parametrize("path", sorted(EXAMPLES.iterdir()), ids=lambda path: path.name)
def test_each_example_is_read_by_its_parser_and_calls_a_command_that_is_there(path, capsys):
    commands = []
    for script in scripts(path):
        done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        joined = script.replace("\\\n", " ")
        commands += re.findall(r"cnnjax train (--.*)$", joined, re.MULTILINE)
    assert len(commands) == 1
    commands = [each.removesuffix('"') if each.count('"') % 2 else each for each in commands]
    for name, value in {"CONFIG": "configs/imagenet_resnet50.py", "SKYPILOT_NUM_NODES": "2"}.items():
        commands[0] = re.sub(rf"[\"']?\${name}[\"']?", value, commands[0])
    words = shlex.split(re.sub(r"\$\w+", "1", commands[0]).replace("'", ""))
    words = [re.sub(r"=\S*configs/", f"={EXAMPLES.parents[1]}/configs/", word) for word in words]
    assert main.run(["train", *words, "--print_config"]) == 0, capsys.readouterr().err
    assert "resnet50" in capsys.readouterr().out
    folders = {word.partition("=")[0]: word for word in words}
    assert {"--workdir", "--config", "--config.data.name", "--distributed"} <= folders.keys()


@pytest.mark.parametrize("name", ["tpu_vm.sh", "skypilot.yaml"])
def test_machines_of_a_cloud_get_what_their_images_lack(name):
    """A Python that the package runs on, its command by path, the client of NFS, a folder to write to."""
    script = "\n".join(scripts(EXAMPLES / name))
    assert re.findall(r"(\S*)cnnjax train", script) in (["venv/bin/"], ["~/venv/bin/"])
    assert script.index("--python 3.12") < script.index("uv pip install") < script.index("mount -t nfs")
    assert script.index("nfs-common") < script.index("mount -t nfs") < script.index("mkdir -m 777")


def test_the_jobset_gives_each_pod_a_number_and_the_right_to_ask_who_it_is():
    yaml = pytest.importorskip("yaml")
    parts = {each["kind"]: each for each in yaml.safe_load_all((EXAMPLES / "jobset.yaml").read_text())}
    assert parts.keys() == {"ServiceAccount", "Role", "RoleBinding", "JobSet"}
    jobs = parts["JobSet"]["spec"]["replicatedJobs"]
    job = jobs[0]["template"]["spec"]
    assert len(jobs) == jobs[0]["replicas"] == 1  # JAX counts the pods of one job
    assert job["completionMode"] == "Indexed" and job["parallelism"] == job["completions"] > 1
    pod = job["template"]["spec"]
    account = parts["ServiceAccount"]["metadata"]["name"]
    assert pod["serviceAccountName"] == account == parts["RoleBinding"]["subjects"][0]["name"]
    assert parts["RoleBinding"]["roleRef"]["name"] == parts["Role"]["metadata"]["name"]
    allowed = {(kind, verb) for r in parts["Role"]["rules"] for kind in r["resources"] for verb in r["verbs"]}
    assert {("pods", "list"), ("services", "list"), ("jobs", "get")} <= allowed
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert volumes == {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}


def test_the_slurm_script_asks_for_one_task_a_node_and_passes_the_signal():
    text = (EXAMPLES / "slurm.sbatch").read_text()
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", text, re.MULTILINE))
    assert asked["ntasks-per-node"] == "1" and int(asked["gpus-per-node"]) > 1
    assert int(asked["cpus-per-task"]) > 1 and 'srun --cpus-per-task="$SLURM_CPUS_PER_TASK"' in text
    assert asked["signal"].startswith("TERM@") and int(asked["signal"][5:]) > 60  # --stop_seconds
