"""The commands: one file each, a function `run` whose parameters are the options."""
