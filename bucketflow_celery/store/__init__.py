"""Where the state of the levels and the backlogs lives: Redis, or memory for tests."""
