"""WAV files: transfer, part file, WAV header, URL policy."""
