"""Which architecture for which data."""
