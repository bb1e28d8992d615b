"""The start script chooses what is there, says why, and hands over exactly one command.

Docker, nvidia-smi and tritonserver are stand-ins on a PATH of the test's own: no machine of ours has them all."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "service_docker_up.sh"
CONFIG = Path("triton_models/weights/config.ini")


class Machine:
    """A PATH with stand-ins, a folder to run the script in, and workspaces."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._bin = folder / "bin"
        self._bin.mkdir()
        for tool in ("bash", "sh", "sed", "grep", "tr", "seq", "dirname", "cat", "find", "env", "id"):
            (self._bin / tool).symlink_to(shutil.which(tool))

    def add(self, name: str, script: str) -> None:
        (self._bin / name).write_text(f"#!/bin/sh\n{script}\n")
        (self._bin / name).chmod(0o755)

    def add_gpus(self, count: int) -> None:
        self.add("nvidia-smi", "\n".join(f"echo 'GPU {i}: NVIDIA H200 (UUID: GPU-{i})'" for i in range(count)))

    def add_docker(self, runtimes: str = "nvidia", has_image: bool = True) -> None:
        self.add("docker", f"""case "$1" in
            info) echo '{{"{runtimes}": {{}}}}' ;;
            image) exit {0 if has_image else 1} ;;
            run) printf '%s\\n' "$@" ;;
        esac""")

    def workspace(self, name: str = "workspace", tp: int = 1, tp_key: str = "tp") -> Path:
        config = self.folder / name / CONFIG
        config.parent.mkdir(parents=True)
        config.write_text(f"[llama]\nformat_version = 1\n{tp_key} = {tp}\nstep_tp = 9\n")
        shutil.copy(SCRIPT, self.folder / name)
        return self.folder / name

    def run(self, *arguments: object, script: Path = SCRIPT, cwd: Path | None = None, shell: str = "bash",
            ) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": str(self._bin), "VIRTUAL_ENV": sys.prefix, "HOME": os.environ.get("HOME", "/")}
        return subprocess.run([shell, script, *map(str, arguments)], cwd=cwd or self.folder, env=environment, text=True,
                              capture_output=True, stdin=subprocess.DEVNULL, timeout=60)

    def command(self, *arguments: object, **options: object) -> list[str]:
        """The words of the command that --dry-run prints."""
        done = self.run("--dry-run", *arguments, **options)
        assert done.returncode == 0, done.stderr
        return shlex.split(done.stdout)

    def error(self, *arguments: object, **options: object) -> str:
        """The one line of a failure."""
        done = self.run(*arguments, **options)
        assert done.returncode != 0
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and done.stderr.endswith(errors[0] + "\n") and not done.stdout
        return errors[0]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing():
    done = subprocess.run(["shellcheck", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_script_at_the_root_is_the_template_s():
    assert SCRIPT.is_symlink() and SCRIPT.resolve() == ROOT / "workspace_template" / "service_docker_up.sh"


def test_help_names_every_option_and_needs_nothing(machine):
    done = machine.run("--help")
    assert done.returncode == 0
    assert all(name in done.stdout for name in (
        "WORKSPACE", "--runtime", "--port", "--http-port", "--server-port", "--gpus", "--dry-run", "docker", "triton",
        "embedded"))


def test_without_docker_and_tritonserver_the_embedded_server_is_taken_and_the_reasons_said(machine):
    workspace = machine.workspace()
    done = machine.run("--dry-run")
    assert "runtime embedded (not docker: docker is not installed; not triton: no tritonserver is there" in done.stderr
    assert shlex.split(done.stdout) == [
        "env", "PYTHONSAFEPATH=1", f"{sys.prefix}/bin/python", "-m", "backend.serve", str(workspace),
        "--server", "embedded", "--port", "33337", "--http-port", "33338", "--server-port", "23333"]


def test_docker_with_gpus_and_image_comes_first(machine):
    workspace = machine.workspace(tp=2)
    machine.add_gpus(4)
    machine.add_docker()
    machine.add("tritonserver", "true")
    assert machine.command("--port", 40000) == [
        "docker", "run", "--rm", "--init", "--stop-timeout", "30", "--shm-size", "16g",
        "--user", f"{os.getuid()}:{os.getgid()}", "--gpus", '"device=0,1"',
        "--publish", "23333:23333", "--publish", "40000:33337", "--publish", "33338:33338",
        "--mount", f'type=bind,"source={workspace}",target=/workspace/models,readonly',
        "--mount", "type=volume,source=millrace-cache,target=/cache",
        "millrace:latest", "python3", "-m", "backend.serve", "/workspace/models", "--server", "triton"]


@pytest.mark.parametrize("docker, reason", [
    ("true", "no NVIDIA GPU is there"),
    ('[ "$1" != info ]', "the Docker engine does not answer"),
])
def test_tritonserver_is_taken_where_docker_cannot_be(machine, docker, reason):
    machine.workspace()
    machine.add("docker", docker)
    machine.add("tritonserver", "true")
    done = machine.run("--dry-run")
    assert "runtime triton (" in done.stderr and reason in done.stderr
    assert option(shlex.split(done.stdout), "--server") == "triton"


def test_docker_without_gpu_runtime_or_image_is_passed_over(machine):
    machine.workspace()
    machine.add_gpus(1)
    machine.add_docker(runtimes="runc")
    assert "Docker has no GPU runtime" in machine.run("--dry-run").stderr
    machine.add_docker(has_image=False)
    assert "the image millrace:latest is not there" in machine.run("--dry-run").stderr


def test_the_command_that_docker_gets_is_the_one_that_was_printed(machine):
    machine.workspace("my models, all")
    machine.add_gpus(1)
    machine.add_docker()
    options = ("my models, all", "--runtime", "docker", "--port", free_port(), "--http-port", free_port(),
               "--", "--session_len", "512")
    assert machine.run(*options).stdout.splitlines() == machine.command(*options)[1:]


@pytest.mark.parametrize("name", ["tp", "tensor_para_size"])
def test_tp_of_config_ini_decides_the_number_of_gpus(machine, name):
    machine.workspace(tp=4, tp_key=name)
    assert option(machine.command("--runtime", "docker"), "--gpus") == '"device=0,1,2,3"'
    assert option(machine.command("--runtime", "docker", "--gpus", "4,5,6,7"), "--gpus") == '"device=4,5,6,7"'


def test_gpus_choose_the_devices_of_the_host_s_servers_too(machine):
    machine.workspace()
    assert "CUDA_VISIBLE_DEVICES=3" in machine.command("--runtime", "embedded", "--gpus=3")
    assert "CUDA_VISIBLE_DEVICES=" in machine.command("--runtime", "embedded", "--gpus", "none")
    assert "--gpus" not in machine.command("--runtime", "docker", "--gpus", "none")


def test_the_copy_in_a_workspace_serves_that_workspace_from_anywhere(machine):
    workspace = machine.workspace("a workspace of mine")
    elsewhere = machine.workspace("elsewhere/workspace").parent
    script = Path("..") / workspace.name / "service_docker_up.sh"
    assert str(workspace) in machine.command(script=script, cwd=elsewhere)
    assert str(elsewhere / "workspace") in machine.command(cwd=elsewhere)
    assert str(workspace) in machine.command("../a workspace of mine/", cwd=elsewhere)


def test_both_spellings_of_an_option_are_the_same(machine):
    machine.workspace()
    assert option(machine.command("--http_port=40001"), "--http-port") == "40001"


def test_a_missing_workspace_is_one_line_with_the_cure(machine):
    assert "./workspace is no workspace" in machine.error()
    assert "make one with: convert" in machine.error("no such folder")


def test_a_port_in_use_is_one_line_with_the_cure(machine):
    machine.workspace()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        assert machine.error("--port", port) == f"error: port {port} is in use; stop what listens there, or choose " \
                                                "another with --port"
        assert "--http-port" in machine.error("--port", free_port(), "--http-port", port)


def test_no_docker_is_one_line_with_the_cure(machine):
    machine.workspace()
    assert "docker is not installed" in machine.error("--runtime", "docker")


def test_no_gpu_is_one_line_with_the_cure(machine):
    machine.workspace(tp=2)
    machine.add_docker()
    assert "no NVIDIA GPU is there (nvidia-smi lists none); use --gpus none" in machine.error("--runtime", "docker")
    assert "no NVIDIA GPU is there" in machine.error("--runtime", "embedded", "--gpus", "0,1")
    machine.add_gpus(1)
    assert "tp is 2" in machine.error("--runtime", "embedded")
    machine.add_gpus(4)
    assert "names 3, but tp is 2" in machine.error("--runtime", "docker", "--gpus", "0,1,2")


def test_no_tritonserver_is_one_line_with_the_cure(machine):
    machine.workspace()
    assert "no tritonserver is there" in machine.error("--runtime", "triton")


@pytest.mark.parametrize("arguments, line", [
    (["--runtime", "podman"], "use docker, triton or embedded"),
    (["--port", "99999"], "99999 is no port"),
    (["--port", "ssh"], "ssh is no port"),
    (["--port", "33338"], "choose two different ones"),
    (["--server-port", "33338"], "choose two different ones"),
    (["--port"], "--port needs a value"),
    (["--gpu", "1"], "unknown option --gpu"),
    (["workspace", "workspace"], "one workspace is served at a time"),
    (["--", "--tp", "2"], "change it there"),
])
def test_a_wrong_option_is_one_line_with_the_cure(machine, arguments, line):
    machine.workspace()
    assert line in machine.error(*arguments)


@pytest.mark.skipif(Path("/bin/sh").resolve().name == "bash", reason="sh is bash here")
def test_run_by_sh_it_asks_for_bash_in_one_line(machine):
    done = machine.run(shell="sh")
    assert done.returncode == 2 and done.stderr == f"error: this script needs bash; run: bash {SCRIPT}\n"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]
