"""The state of levels and backlogs as plain values, for the surfaces that show it."""
