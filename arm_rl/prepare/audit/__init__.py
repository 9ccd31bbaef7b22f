"""What is in files of training data, and what is suspicious about them: `contents` reads, `checks` finds, `calls` looks at tool calls."""
