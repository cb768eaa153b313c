"""Pure values: identifiers, clocks, registers and their merge, records, manifests.

Nothing here reads a clock, a file, a socket or a random source; time, ids and
randomness are arguments. Both packages build on it.
"""
