"""What client and server share: ports, model and tensor names, status codes. Imports neither torch nor numpy."""
