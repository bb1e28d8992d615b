"""This workspace's model of the name in config.pbtxt, inside Triton Inference Server."""

from backend.serving.workspace_model import WorkspaceModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
