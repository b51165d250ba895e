"""How a network is trained: optimiser, loss, schedule, and the settings of a user."""
