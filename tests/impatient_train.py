"""`launch/train.py` whose ranks wait for each other for 10 s only."""

import sys

from attvae.cli import app
from attvae.engine import rendezvous

if __name__ == "__main__":
    rendezvous.MEET_S = 10.0
    app(["train", *sys.argv[1:]])
