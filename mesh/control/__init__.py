"""Pure state machines: what happens next, decided without I/O, clock or randomness."""
