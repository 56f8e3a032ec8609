"""What the engine can do: speed, and grids that only a fast engine can fill."""
