"""Default ports. 33337 and 23333 are LMDeploy's, which users' scripts know."""

GRPC_PORT = 33337  # KServe v2 over gRPC
HTTP_PORT = 33338  # KServe v2 over HTTP
OPENAI_PORT = 23333  # OpenAI's API
WEBUI_PORT = 6006
