"""`deepspeed launch/train.py CONFIG [key=value ...]`: what `attvae train` does, for launchers that want a script."""

import sys

from attvae.cli import app
from attvae.closed_terminal import survive_closed_terminal

if __name__ == "__main__":
    survive_closed_terminal()
    app(["train", *sys.argv[1:]])
