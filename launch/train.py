"""`deepspeed launch/train.py CONFIG [key=value ...]`: what `attvae train` does, for launchers that want a script."""

import sys

from attvae.cli import app

if __name__ == "__main__":
    app(["train", *sys.argv[1:]])
