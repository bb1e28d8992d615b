"""Who may import whom: the rule of docs/architecture.md, checked on the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Modules that everyone in backend may import; they import only one another.
COMMON = {"backend.errors", "backend.config", "backend.config_faults", "backend.requests", "backend.steps",
          "backend.forward_batch", "backend.kv_format", "backend.distributed", "backend.workspace",
          "backend.model_source", "backend.memory_plan", "backend.accuracy_report", "backend.safetensors_file",
          "backend.tokenizer_files", "backend.chat_templates", "backend.command_line", "backend.logs",
          "backend.processes"}
# A module under the prefix may import, besides COMMON and its own prefix, only modules under these.
ALLOWED = {
    "backend.kernels": set(),
    "backend.layers": {"backend.kernels"},
    "backend.models": {"backend.layers"},
    "backend.worker": {"backend.models", "backend.layers", "backend.kernels", "backend.text.grammar_compiler",
                       "backend.text.tokenizer"},
    "backend.text": set(),
    "backend.engine": {"backend.worker.executor", "backend.text"},
    "backend.serving": {"backend.engine", "backend.text", "protocol"},
    "backend.serve": {"backend.serving", "backend.engine", "backend.text", "protocol"},
    "backend": {"backend.engine", "backend.text", "terminal"},
    "converter": {"backend.accuracy_report", "backend.config", "backend.workspace", "backend.errors",
                  "backend.model_source", "backend.safetensors_file", "backend.tokenizer_files",
                  "backend.chat_templates", "backend.command_line", "backend.logs", "protocol.models"},
    "converter.accuracy": {"converter.layerwise", "backend.accuracy_report", "backend.config", "backend.distributed",
                           "backend.errors", "backend.forward_batch", "backend.kv_format", "backend.workspace",
                           "backend.memory_plan", "backend.model_source", "backend.requests", "backend.steps",
                           "backend.text.tokenizer", "backend.worker"},
    "converter.calibration_options": {"terminal"},
    "converter.calibration_windows": {"converter", "backend.errors", "backend.model_source", "backend.text"},
    "converter.layerwise": {"backend.config", "backend.distributed", "backend.errors", "backend.forward_batch",
                            "backend.kv_format", "backend.layers", "backend.model_source", "backend.models",
                            "backend.worker.device", "backend.worker.weight_loader"},
    "converter.input_statistics": {"backend.layers"},
    "converter.awq_layer": {"converter", "backend.config", "backend.models"},
    "converter.kv_calibration": {"converter", "backend.accuracy_report", "backend.config", "backend.errors",
                                 "backend.forward_batch", "backend.kv_format", "backend.model_source",
                                 "backend.worker.past_kv_scale", "backend.workspace"},
    "client": {"protocol", "terminal"},
    "protocol": set(),
    "terminal": set(),
}
# The one exception: what all commands share is there for those that need no backend, too.
COMMON_MAY_IMPORT = {"backend.command_line": {"terminal"}}
OURS = ("backend", "converter", "client", "protocol", "terminal", "demo", "benchmarks", "tests")


def modules(*packages: str) -> dict[str, Path]:
    found = {}
    for package in packages:
        for file in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            found[name] = file
    return found


def imports(file: Path) -> set[str]:
    """Absolute module names that a file imports, wherever the statement stands."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively; name the module in full"
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            names |= submodules or {node.module}
    return names


MODULES = modules(*(name for name in OURS if (ROOT / name).is_dir()))


def is_under(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


@pytest.mark.parametrize("module", [name for name in MODULES if not is_under(name, "tests")
                                    and not is_under(name, "demo") and not is_under(name, "benchmarks")])
def test_module_imports_only_what_the_rule_allows(module):
    own = max((prefix for prefix in ALLOWED if is_under(module, prefix)), key=len)
    allowed = COMMON_MAY_IMPORT.get(module, set()) if module in COMMON else ALLOWED[own] | {own}
    if is_under(module, "backend"):
        allowed = allowed | COMMON
    ours = {name for name in imports(MODULES[module]) if name.split(".")[0] in OURS}
    wrong = {name for name in ours if not any(is_under(name, prefix) for prefix in allowed)}
    assert not wrong, f"{module} imports {sorted(wrong)}"


@pytest.mark.parametrize("module", [name for name in MODULES if is_under(name, "backend.engine")])
def test_engine_imports_no_torch_itself(module):
    assert not {name for name in imports(MODULES[module]) if name.split(".")[0] in ("torch", "triton")}


@pytest.mark.parametrize("module", ["backend.engine.scheduler", "backend.requests", "backend.steps", "backend.config",
                                    "backend.memory_plan", "backend.model_source", "backend.chat", "backend.plan",
                                    "converter.__main__", "client.__main__"])
def test_deciding_and_reading_a_command_line_need_no_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
