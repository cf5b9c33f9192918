"""The command line: one module per command; parse, one library call, print."""
