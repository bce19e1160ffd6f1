"""Health of a worker's container: does a worker of this host renew its lease? Exit status 0 if so, else 1."""

import socket
import sys

from aigc import AigcError, Client


def alive() -> bool:
    """Whether the database knows a living worker session of this host."""
    here = f"{socket.gethostname()}:"
    return any(worker.worker.startswith(here) for worker in Client().workers())


if __name__ == "__main__":
    try:
        sys.exit(0 if alive() else 1)
    except AigcError as error:
        sys.exit(str(error))
