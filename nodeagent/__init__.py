"""The node agent: runs the sandboxes of one machine. No Django here, and nothing of the apps."""

__version__ = "0.1.0"
