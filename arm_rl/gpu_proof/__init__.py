"""The GPU proof: eleven sections that show on one GPU what tests on CPUs cannot, each in a process of its own."""
