"""`python -m client`."""

from client.cli import main
from client.errors import ChatError
from terminal.command_line import run

if __name__ == "__main__":
    run(main, ChatError)
