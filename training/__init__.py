"""Training of any module that returns a dict of losses: the loop, the optimiser, checkpoints, logs."""
