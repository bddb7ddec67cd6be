"""haltwire: the kill switch for AI agents that works at the network."""

__version__ = "0.1.0"
