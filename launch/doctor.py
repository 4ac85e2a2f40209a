"""`deepspeed launch/doctor.py [CONFIG] --distributed`: what `attvae doctor` does, for launchers that want a script."""

import sys

from attvae.cli import app

if __name__ == "__main__":
    app(["doctor", *sys.argv[1:]])
