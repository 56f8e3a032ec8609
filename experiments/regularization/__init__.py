"""When networks generalize: dropout, weight decay, early stopping, capacity."""
