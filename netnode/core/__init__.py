"""Decisions of the network, sans-io: pure state machines over (state, input, now).

No clock, socket, randomness or database here; `peers` and `service` feed them and
carry out what they decide.
"""
