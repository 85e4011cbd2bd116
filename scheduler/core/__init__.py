"""The pure decision core: no clock, no I/O, no randomness, no logging."""
