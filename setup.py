"""Packages, dependencies and commands. Build system and tool settings are in pyproject.toml."""

from setuptools import find_packages, setup

HTTP = ["aiohttp>=3.11"]  # of the client and of benchmarks.serving
# tritonclient carries the KServe v2 stubs. Its code refuses a protobuf older than 6.33.5, whatever its metadata says.
GRPC = ["tritonclient[grpc]>=2.73", "protobuf>=6.33.5,<7"]
CALIBRATION = ["pyarrow>=15", "zstandard>=0.22"]  # calibration texts in Parquet, Arrow and .zst files
TRACING = ["opentelemetry-sdk>=1.30", "opentelemetry-exporter-otlp-proto-http>=1.30"]
EXAMPLES = ["openai>=1.92", "langchain-openai>=0.3", "openai-agents>=0.1"]
# Whether kernels in CUDA C++ compile is tested without a GPU.
NVRTC = ["cuda-bindings>=13.0; platform_system == 'Linux'", "nvidia-cuda-nvrtc>=13.0; platform_system == 'Linux'"]
DEV = [*CALIBRATION, *HTTP, *EXAMPLES, *NVRTC, "opentelemetry-sdk>=1.30", "pytest", "pytest-timeout", "pytest-xdist",
       "hypothesis", "pexpect", "playwright>=1.50", "psutil", "ruff", "schemathesis>=4.0", "transformers>=5.0",
       "tritonclient[http]>=2.73"]

setup(
    name="millrace",
    version="0.1.0",
    description="Turns a Hugging Face checkpoint into a workspace and serves it",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=[*find_packages(include=["converter*", "backend*", "client*", "protocol", "terminal"]),
              "workspace_template"],
    package_data={"backend.kernels": ["*.cu", "*.cuh"], "workspace_template": ["**/*"], "client.webui": ["style.css"],
                  "converter": ["calibration_text.txt"]},
    install_requires=[
        "torch>=2.11",  # the first that asks for the Triton below
        "triton>=3.6; platform_system == 'Linux'",  # Gluon as the prefill kernel for Hopper is written in it
        "safetensors>=0.5",
        "tokenizers>=0.21",
        "llguidance>=1.9",  # answers that follow a grammar; it has no dependencies
        "sentencepiece>=0.2.3",  # 0.2.2 rejects a vocabulary with a \x00 piece, which InternLM's has
        "jinja2>=3.1",
        "numpy",
        "tomli>=2.0",
        "click>=8.1",
        "prompt_toolkit>=3.0",
        "tqdm",
    ],
    extras_require={
        "serve": ["pyzmq>=26", "msgspec>=0.19", *GRPC, "starlette>=0.46", "uvicorn>=0.34",
                  "fastapi>=0.115", "pydantic>=2.9", "httptools>=0.6", "uvloop>=0.21; platform_system != 'Windows'",
                  "fastapi-offline>=1.7",  # Swagger UI's files
                  "prometheus-client>=0.21"],
        "tracing": TRACING,
        "client": [*GRPC, *HTTP],
        "webui": ["gradio>=6.0,<7"],
        "calibration": CALIBRATION,
        "bench": [*HTTP, "transformers>=5.0", "matplotlib>=3.9", "psutil"],
        "examples": EXAMPLES,
        "dev": DEV,
    },
    entry_points={
        "console_scripts": ["convert = converter.__main__:main"],
        "millrace.model_sources": ["huggingface = converter.source:open_checkpoint"],
        "millrace.model_outlines": ["huggingface = converter.source:read_outline"],
    },
)
