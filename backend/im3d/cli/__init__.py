"""The subcommands of `im3d`: each module has `configure(parser)` and `run(args) -> exit status`."""
