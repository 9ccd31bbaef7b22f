"""What a machine offers to a run: the checks of `arm-rl doctor`."""
