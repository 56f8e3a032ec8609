"""Why go deep: which deep networks train, and what depth buys."""
