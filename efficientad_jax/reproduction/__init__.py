"""The paper's tables, run again: what to train, what came of it, beside what is in print."""
