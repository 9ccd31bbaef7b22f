"""Weight synchronisation from the learner ranks to the engines."""
