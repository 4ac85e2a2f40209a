"""`launch/doctor.py --distributed` where rank 1 is unlike rank 0: another torch, another time, and what RANK_1 adds."""

import importlib.metadata
import os
import sys
import time

from attvae import agreement
from attvae.cli import app
from attvae.doctor import examine

if __name__ == "__main__":
    agreement.SEEN_WITHIN_S = 1.0
    examine.PATIENCE_S = 20.0
    arguments = ["doctor", "--distributed", *sys.argv[1:]]
    if os.environ["RANK"] == "1":
        sound_version, sound_time = importlib.metadata.version, time.time
        agreement.version = lambda name: "1.2.3" if name == "torch" else sound_version(name)
        examine.ranks.clocks.__defaults__ = (lambda: sound_time() + 60,)
        arguments += os.environ["RANK_1"].split()
    app(arguments)
