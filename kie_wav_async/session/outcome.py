"""What became of one track of a batch."""

from __future__ import annotations

from typing import cast

import attrs

from kie_wav_async.errors import KieWavError
from kie_wav_async.models import Track, WavFile


@attrs.frozen
class Outcome:
    """
    How one track of a batch ended, as a value.

    Attributes:
        index: Position of the track in the catalog, from 0.

        track: The track as it was read.

        wav: The file; `None` if, and only if, *error* is set.

        error: Why there is none.

    Raises:
        ValueError: Both or neither of *wav* and *error* are set.
    """

    index: int
    track: Track
    wav: WavFile | None = None
    error: KieWavError | None = None

    def __attrs_post_init__(self) -> None:
        """Hold the invariant: a file or an error."""
        if (self.wav is None) is (self.error is None):
            msg = "an outcome has either a wav or an error"
            raise ValueError(msg)

    @property
    def ok(self) -> bool:
        """Whether there is a file."""
        return self.wav is not None

    def unwrap(self) -> WavFile:
        """
        Return the file.

        Raises:
            KieWavError: The error, if that is how the track ended.
        """
        if self.error is not None:
            raise self.error
        return cast("WavFile", self.wav)
