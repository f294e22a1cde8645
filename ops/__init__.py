"""Installing, starting, checking and testing Sandlot on one machine. Standard library only.

`python3 -m ops COMMAND`; the Makefile names the commands. Nothing here imports Django: `doctor` and
`up` must work, and say what is wrong, on a machine where nothing is installed yet.
"""
