"""From raw questions to training data: sources, pairs, difficulty, teacher sessions, formats and audits."""
