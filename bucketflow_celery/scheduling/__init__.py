"""Which task may start when: admission, backlog, fair dispatch. Pure; ``store/lua`` mirrors it."""
