"""The command line: a skin over the core, one module a group of commands."""
