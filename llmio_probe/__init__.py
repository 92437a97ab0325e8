"""llmio-probe: which worker asked for which block I/O, for what, and where the time went."""

__version__ = "0.1.0"
