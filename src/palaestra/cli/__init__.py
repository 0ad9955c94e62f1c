"""The command line: one module per command, each a thin front of the layers below."""
