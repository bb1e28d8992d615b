#!/usr/bin/env bash
# Starts the service for one workspace: OpenAI's API on port 23333, KServe v2 over gRPC on 33337 and over HTTP on 33338.
#
# Chooses where it runs and hands over to one command, which it prints with --dry-run: `docker run` of the image of
# docker/Dockerfile, or `python -m backend.serve` with tritonserver or with Millrace's own server. `convert` copies this
# file into every workspace, where it serves that workspace; the one at the root of Millrace is a link to it.

if [ -z "${BASH_VERSION:-}" ]; then
    echo "error: this script needs bash; run: bash $0" >&2
    exit 2
fi
set -euo pipefail

IMAGE="${MILLRACE_IMAGE:-millrace:latest}"
CONTAINER_WORKSPACE=/workspace/models
here="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)"

usage() {
    cat <<'END'
Usage: bash service_docker_up.sh [WORKSPACE] [OPTIONS] [-- OPTIONS OF backend.serve]

Serves a workspace until Ctrl-C. WORKSPACE defaults to the workspace that this script lies in, else to ./workspace.

  --runtime R     docker: the image of docker/Dockerfile, which holds tritonserver; needs Docker with a GPU runtime
                  triton: a tritonserver on this machine
                  embedded: Millrace's own server
                  [default: the first of these that is there]
  --server-port N OpenAI's API  [default: 23333]
  --port N        KServe v2 over gRPC  [default: 33337]
  --http-port N   KServe v2 over HTTP  [default: 33338]
  --gpus LIST     GPUs to use, as many as tp in config.ini, e.g. 2,3; none: run on the CPU  [default: the first ones]
  --dry-run       print the exact command and run nothing
  -h, --help      this text

Examples:
  bash service_docker_up.sh
  bash workspace/service_docker_up.sh --runtime embedded --port 40000
  bash service_docker_up.sh "/models/internlm2 chat" --gpus 2,3 -- --session_len 8192
END
}

say() { printf '%s\n' "$*" >&2; }

fail() {
    say "error: $*"
    exit 1
}

# --- what was asked ---------------------------------------------------------------------------------------------------

workspace="" runtime="" port=33337 http_port=33338 server_port=23333 gpus="" is_dry_run=false
serve_options=()

while [ $# -gt 0 ]; do
    option="$1" value="" has_value=false
    case "$option" in
        --) shift; serve_options=("$@"); break ;;
        --*=*) value="${option#*=}" option="${option%%=*}" has_value=true ;;
    esac
    option="${option//_/-}"
    case "$option" in
        --runtime | --port | --http-port | --server-port | --gpus)
            if ! $has_value; then
                [ $# -ge 2 ] || fail "$option needs a value; see --help"
                value="$2"
                shift
            fi ;;
    esac
    case "$option" in
        --runtime) runtime="$value" ;;
        --port) port="$value" ;;
        --http-port) http_port="$value" ;;
        --server-port) server_port="$value" ;;
        --gpus) gpus="$value" ;;
        --dry-run) is_dry_run=true ;;
        -h | --help) usage; exit 0 ;;
        -*) fail "unknown option $1; see --help" ;;
        *)
            [ -z "$workspace" ] || fail "one workspace is served at a time, but $workspace and $1 were given"
            workspace="$1" ;;
    esac
    shift
done

case "$runtime" in
    "" | docker | triton | embedded) ;;
    *) fail "--runtime $runtime does not exist; use docker, triton or embedded" ;;
esac
for number in "$port" "$http_port" "$server_port"; do
    if ! [[ "$number" =~ ^[1-9][0-9]{0,4}$ ]] || [ "$number" -gt 65535 ]; then
        fail "$number is no port; use a number from 1 to 65535"
    fi
done
require_two_ports() { [ "$2" != "$4" ] || fail "$1 and $3 are both $2; choose two different ones"; }
require_two_ports --port "$port" --http-port "$http_port"
require_two_ports --port "$port" --server-port "$server_port"
require_two_ports --http-port "$http_port" --server-port "$server_port"

# --- the workspace ----------------------------------------------------------------------------------------------------

CONFIG=triton_models/weights/config.ini
if [ -z "$workspace" ]; then
    workspace="./workspace"
    [ ! -f "$here/$CONFIG" ] || workspace="$here"
fi
[ -f "$workspace/$CONFIG" ] ||
    fail "$workspace is no workspace (it has no $CONFIG); make one with: convert MODEL_NAME MODEL_PATH --dst_path $workspace"
workspace="$(CDPATH='' cd -- "$workspace" && pwd -P)"

tp="$(sed -n -E 's/^[[:space:]]*(tp|tensor_para_size)[[:space:]]*=[[:space:]]*([0-9]+).*/\2/p' "$workspace/$CONFIG")"
tp="${tp:-1}"
case " ${serve_options[*]-} " in
    *" --tp"[\ =]*) fail "tp stands in $workspace/$CONFIG; change it there rather than with --tp" ;;
esac

# --- what is there; each *_problem prints why not, or nothing ---------------------------------------------------------

count_gpus() {
    if command -v nvidia-smi >/dev/null; then
        nvidia-smi -L 2>/dev/null | grep -c '^GPU ' || true
    else
        find /dev -maxdepth 1 -name 'nvidia[0-9]*' 2>/dev/null | grep -c . || true
    fi
}

gpu_problem() {
    local there given
    [ "$gpus" != none ] || return 0
    there="$(count_gpus)"
    if [ "$there" -eq 0 ]; then
        echo "no NVIDIA GPU is there (nvidia-smi lists none); use --gpus none to run on the CPU"
    elif [ "$there" -lt "$tp" ]; then
        echo "tp is $tp in $workspace/$CONFIG, but GPUs here: $there; set tp to $there or less, or use --gpus none"
    elif [ -n "$gpus" ]; then
        given="$(tr ',' '\n' <<<"$gpus" | grep -c .)" || true
        [ "$given" -eq "$tp" ] || echo "--gpus $gpus names $given, but tp is $tp in $workspace/$CONFIG; give $tp"
    fi
}

docker_problem() {
    local runtimes build="docker build -t $IMAGE -f docker/Dockerfile ."
    if ! command -v docker >/dev/null; then
        echo "docker is not installed; see https://docs.docker.com/engine/install, or use --runtime embedded"
    elif ! runtimes="$(docker info --format '{{json .Runtimes}}' 2>/dev/null)"; then
        echo "the Docker engine does not answer (docker info fails); start it, or use --runtime embedded"
    elif [ "$gpus" != none ] && [ "$(count_gpus)" -eq 0 ]; then
        gpu_problem
    elif [ "$gpus" != none ] && [[ "$runtimes" != *nvidia* ]]; then
        echo "Docker has no GPU runtime; install nvidia-container-toolkit, or use --runtime embedded"
    elif ! docker image inspect "$IMAGE" >/dev/null 2>&1; then
        echo "the image $IMAGE is not there; build it in Millrace's folder with: $build"
    fi
}

find_tritonserver() { command -v tritonserver || command -v /opt/tritonserver/bin/tritonserver; }

triton_problem() {
    find_tritonserver >/dev/null ||
        echo "no tritonserver is there (neither on PATH nor in /opt/tritonserver/bin); use --runtime embedded"
}

# The Python that Millrace is installed in: the active environment, Millrace's own .venv, or the system's.
find_python() {
    local candidate
    for candidate in "${VIRTUAL_ENV:-/nowhere}/bin/python" "$here/.venv/bin/python" "$here/../.venv/bin/python" \
        "$(command -v python3 || true)" "$(command -v python || true)"; do
        [ -x "$candidate" ] || continue
        # From /, so that a folder named `backend` in the current one is not taken for ours.
        if (cd / && "$candidate" -c \
            'import importlib.util as u, sys; sys.exit(u.find_spec("backend.serve") is None)') 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

check_port_is_free() {
    if (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; then
        fail "port $1 is in use; stop what listens there, or choose another with $2"
    fi
}

# --- choose -----------------------------------------------------------------------------------------------------------

if [ -n "$runtime" ]; then
    reason="as told"
else
    docker_reason="$(docker_problem)"
    triton_reason="$(triton_problem)"
    if [ -z "$docker_reason" ]; then
        runtime=docker reason="Docker, a GPU runtime and the image $IMAGE are there"
    elif [ -z "$triton_reason" ]; then
        runtime=triton reason="$(find_tritonserver) is there; not docker: ${docker_reason%%;*}"
    else
        runtime=embedded reason="not docker: ${docker_reason%%;*}; not triton: ${triton_reason%%;*}"
    fi
fi
say "runtime $runtime ($reason)"

# --- the command ------------------------------------------------------------------------------------------------------

if [ "$runtime" = docker ]; then
    command=(docker run --rm --init --stop-timeout 30 --shm-size 16g --user "$(id -u):$(id -g)")
    [ ! -t 0 ] || [ ! -t 1 ] || command+=(--interactive --tty)
    if [ "$gpus" != none ]; then
        devices="${gpus:-$(seq -s, 0 $((tp - 1)))}"
        command+=(--gpus "\"device=$devices\"")  # the inner quotes keep docker from splitting at the commas
    fi
    command+=(--publish "$server_port:23333" --publish "$port:33337" --publish "$http_port:33338"
        --mount "type=bind,\"source=$workspace\",target=$CONTAINER_WORKSPACE,readonly"
        --mount "type=volume,source=millrace-cache,target=/cache"  # compiled kernels
        "$IMAGE" python3 -m backend.serve "$CONTAINER_WORKSPACE" --server triton)
else
    python="$(find_python)" ||
        fail "no Python here has Millrace; activate its environment, or run in its folder: pip install -e '.[serve]'"
    command=(env PYTHONSAFEPATH=1)  # the current folder may hold a `backend` of somebody else's
    if [ "$gpus" = none ]; then
        command+=(CUDA_VISIBLE_DEVICES=)
    elif [ -n "$gpus" ]; then
        command+=("CUDA_VISIBLE_DEVICES=$gpus")
    fi
    command+=("$python" -m backend.serve "$workspace" --server "$runtime" --port "$port" --http-port "$http_port"
        --server-port "$server_port")
fi
command+=(${serve_options[@]+"${serve_options[@]}"})

if $is_dry_run; then
    printf '%q ' "${command[@]}"
    echo
    exit 0
fi

# --- only with what this machine has ----------------------------------------------------------------------------------

problem=""
case "$runtime" in
    docker) problem="$(docker_problem)" ;;
    triton) problem="$(triton_problem)" ;;
esac
# The host's runtimes use a CPU where there is no GPU; a GPU that was asked for has to be there.
if [ -z "$problem" ] && { [ -n "$gpus" ] || [ "$runtime" = docker ] || [ "$(count_gpus)" -gt 0 ]; }; then
    problem="$(gpu_problem)"
fi
[ -z "$problem" ] || fail "$problem"
check_port_is_free "$port" --port
check_port_is_free "$http_port" --http-port
check_port_is_free "$server_port" --server-port
exec "${command[@]}"
