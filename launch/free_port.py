"""Prints a TCP port that is free now, for launchers that want one: `--master_port $(python launch/free_port.py)`."""

import socket

if __name__ == "__main__":
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        print(s.getsockname()[1])
