"""The web UI of a served model: `python -m client.webui HOST:33337 internlm`. Gradio is imported by page.py alone."""
