"""`python launch/torchrun.py [torchrun's options] launch/train.py CONFIG`: torchrun with the exit codes of its ranks.

torchrun itself ends with 1 whatever they returned, kills them 30 s after a signal, and on SIGUSR1 leaves them alone.
Here a signal becomes a request to save, and the exit code says what to do: 75 run again, 2 mend the input.
"""

import os
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

STOPPED = 75

if __name__ == "__main__":
    os.environ.setdefault("PET_SIGNALS_TO_HANDLE", "SIGTERM,SIGINT,SIGUSR1")
    os.environ.setdefault("PET_SHUTDOWN_TIMEOUT", "280")  # schedulers are asked for 300 s
    try:
        main()
    except SignalException:
        sys.exit(STOPPED)
    except ChildFailedError as failed:
        _, first = failed.get_first_failure()
        if first.exitcode not in (STOPPED, 2):
            print(failed, file=sys.stderr)
        sys.exit(first.exitcode if first.exitcode > 0 else 128 - first.exitcode)  # as a shell says a signal
