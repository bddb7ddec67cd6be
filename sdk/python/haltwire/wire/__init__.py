"""The contract between agent, proxy, control server and command line, as pure values.

Nothing here reads a clock, a socket, a file or a random number.
"""
