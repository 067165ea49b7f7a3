"""What others do with the same models and adapters, each run in a process of its own."""
