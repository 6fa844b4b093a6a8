"""What every folder may use: clock, timer, validation, files."""
