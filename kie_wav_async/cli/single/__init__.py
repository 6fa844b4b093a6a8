"""Commands for one track."""
