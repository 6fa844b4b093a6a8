"""The command line: ``python -m kie_wav_async`` is ``kie-wav``."""

import sys

from kie_wav_async.cli import main

if __name__ == "__main__":
    sys.exit(main())
