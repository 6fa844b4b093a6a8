"""Run a simulator as a process: ``python -m kie_wav_async.simulator --help``."""

import sys

from kie_wav_async.simulator.process import main

if __name__ == "__main__":
    sys.exit(main())
