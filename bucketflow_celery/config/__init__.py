"""Configuration: the options, limits and rules of the user, and the policy that follows for one task. Pure: no I/O."""
