"""The served models and the tensors of `chat`, by name.

Types and shapes are in workspace_template/triton_models/*/config.pbtxt, the single source; tests compare."""

PREPROCESSING = "preprocessing"
TURBOMIND = "turbomind"
POSTPROCESSING = "postprocessing"
CHAT = "chat"

# Folder under triton_models/ of each served model.
FOLDERS = {TURBOMIND: "interactive", PREPROCESSING: "preprocessing", POSTPROCESSING: "postprocessing", CHAT: "chat"}
