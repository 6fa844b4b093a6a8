"""What `SimulatorProcess` runs; people run ``kie-wav simulate``."""

import sys

from kie_wav_async.simulator.process import main

if __name__ == "__main__":
    sys.exit(main())
