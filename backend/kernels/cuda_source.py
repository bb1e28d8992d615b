"""CUDA source: kernels in CUDA C++, compiled at first use by NVRTC, which comes with torch, and kept on disk.

No toolkit is needed. Where the compiler or its Python package is missing, `is_available` says so, once in the log, and
the callers use their Triton kernels. Used by the modules beside a .cu file."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from backend.kernels.capability import can_begin_early, is_hopper

logger = logging.getLogger(__name__)
NOTHING = b'extern "C" __global__ void nothing() {}'


@functools.cache
def is_available(device: torch.device) -> bool:
    """Whether kernels in CUDA C++ can be compiled for, and run on, this device: tried, with an empty one."""
    if not can_begin_early(device):
        return False
    try:
        from cuda.bindings import driver  # noqa: F401

        compile_source(NOTHING, "nothing.cu", [_architecture(device)])
    except (ImportError, RuntimeError) as error:
        logger.warning("kernels in CUDA C++ are off (%s), Triton's and cuBLAS are used instead, which are slower for "
                       "few tokens; pip install cuda-bindings for CUDA %s turns them on", error, torch.version.cuda)
        return False
    return True


@dataclass(frozen=True, slots=True)
class CudaKernel:
    """A loaded kernel, to be launched with `threads` threads and `shared_bytes` of dynamic shared memory a block."""

    function: Any
    threads: int
    shared_bytes: int = 0

    def launch(self, num_blocks: int, arguments: list[tuple[Any, Any]]) -> None:
        """On torch's current stream, and allowed to begin before the kernel in front of it has ended.

        arguments  (value, ctypes type) pairs; the type of a pointer is ctypes.c_void_p, that of a tensor map None"""
        from cuda.bindings import driver

        early = driver.CUlaunchAttribute()
        early.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        early.value.programmaticStreamSerializationAllowed = 1
        values, types = zip(*arguments, strict=True)
        _check(driver.cuLaunchKernelEx(self._config(num_blocks, early), self.function, (values, types), 0))

    def max_clusters(self, cluster: int) -> int:
        """How many clusters of that many blocks run at the same time."""
        from cuda.bindings import driver

        together = driver.CUlaunchAttribute()
        together.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
        together.value.clusterDim.x, together.value.clusterDim.y, together.value.clusterDim.z = cluster, 1, 1
        return _check(driver.cuOccupancyMaxActiveClusters(self.function, self._config(cluster, together)))

    def _config(self, num_blocks: int, attribute: Any) -> Any:
        from cuda.bindings import driver

        config = driver.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = num_blocks, 1, 1
        config.blockDimX, config.blockDimY, config.blockDimZ = self.threads, 1, 1
        config.sharedMemBytes = self.shared_bytes
        config.hStream = torch.cuda.current_stream().cuda_stream
        config.attrs, config.numAttrs = [attribute], 1
        return config


def load(file: Path, name: str, macros: dict[str, int], device: torch.device, threads: int,
         shared_bytes: int = 0) -> CudaKernel:
    """The kernel `name` of a source file, compiled with these macros for the device; from the cache if it is there.

    Raises RuntimeError with the compiler's words."""
    return _loaded(_machine_code(file, _options(macros, device)), name, device, threads, shared_bytes)


@functools.cache
def max_clusters(cluster: int, threads: int, shared_bytes: int, device: torch.device) -> int:
    """How many clusters of so many blocks run at the same time, if registers do not limit them."""
    code = compile_source(NOTHING, "nothing.cu", [_architecture(device)])
    return _loaded(code, "nothing", device, threads, shared_bytes).max_clusters(cluster)


def _loaded(code: bytes, name: str, device: torch.device, threads: int, shared_bytes: int) -> CudaKernel:
    from cuda.bindings import driver

    with torch.cuda.device(device):
        torch.cuda.current_stream()  # torch's context is the current one from here on
        module = _check(driver.cuModuleLoadData(code))
        function = _check(driver.cuModuleGetFunction(module, name.encode()))
        if shared_bytes:  # more than 48 KiB must be asked for
            attributes = driver.CUfunction_attribute
            _check(driver.cuFuncSetAttribute(
                function, attributes.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, shared_bytes))
            # A multiprocessor that has divided its memory for one kernel cannot begin one that wants another division.
            _check(driver.cuFuncSetAttribute(
                function, attributes.CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, 100))
        return CudaKernel(function, threads, shared_bytes)


def compile_together(file: Path, variants: list[dict[str, int]], device: torch.device) -> None:
    """Compiles a source file with each of these macros, side by side, so that `load` finds them compiled."""
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda macros: _machine_code(file, _options(macros, device)), variants))


def _options(macros: dict[str, int], device: torch.device) -> tuple[str, ...]:
    return _architecture(device), "--std=c++17", *(f"-D{key}={macros[key]}" for key in macros)


@functools.cache  # what cannot be kept on disk is compiled once nevertheless
def _machine_code(file: Path, options: tuple[str, ...]) -> bytes:
    from cuda.bindings import nvrtc

    source = file.read_bytes()
    headers = [header.read_text(encoding="utf-8") for header in sorted(file.parent.glob("*.cuh"))]
    key = "\n".join([source.decode(), *headers, *options, str(_check(nvrtc.nvrtcVersion()))])
    name = f"{file.stem}-{hashlib.sha256(key.encode()).hexdigest()[:32]}.cubin"
    with contextlib.suppress(OSError, RuntimeError):  # no home, not readable, not there: it is compiled
        return (_cache_dir() / name).read_bytes()
    code = compile_source(source, file.name, [*options, f"--include-path={file.parent}"])
    try:
        _keep(code, _cache_dir() / name)
    except OSError as error:
        _warn_not_kept(f"{_cache_dir()}: {error.strerror}")
    except RuntimeError as error:  # no home
        _warn_not_kept(str(error))
    return code


@functools.cache  # once, not for each kernel
def _warn_not_kept(reason: str) -> None:
    logger.warning("compiled kernels are not kept (%s); set XDG_CACHE_HOME to a folder that can be written", reason)


def _keep(code: bytes, file: Path) -> None:
    """Whole or not at all, also when several processes compile the same kernel."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        part = Path(folder) / file.name
        part.write_bytes(code)
        part.replace(file)


def compile_source(source: bytes, name: str, options: list[str]) -> bytes:
    """Machine code of a CUDA C++ source. Needs no GPU. Raises RuntimeError with the compiler's words."""
    from cuda.bindings import nvrtc

    program = _check(nvrtc.nvrtcCreateProgram(source, name.encode(), 0, None, None))
    try:
        result, = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
        if result != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            log = b" " * _check(nvrtc.nvrtcGetProgramLogSize(program))
            _check(nvrtc.nvrtcGetProgramLog(program, log))
            raise RuntimeError(f"{name} does not compile: {log.decode(errors='replace')}")
        code = b" " * _check(nvrtc.nvrtcGetCUBINSize(program))
        _check(nvrtc.nvrtcGetCUBIN(program, code))
        return code
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _architecture(device: torch.device) -> str:
    major, minor = torch.cuda.get_device_capability(device)
    return f"--gpu-architecture=sm_{major}{minor}{'a' if is_hopper(device) else ''}"  # a: with wgmma, Hopper's alone


def _cache_dir() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "millrace" / "kernels"


def _check(result: tuple[Any, ...]) -> Any:
    """The value of a call of cuda.bindings; RuntimeError where it failed."""
    status, *values = result
    if int(status) != 0:
        raise RuntimeError(f"{type(status).__name__}: {status.name}")
    return values[0] if values else None
