"""The Ray actors: rollouts, tool executors, scorers, learners; and how weights travel between them."""
