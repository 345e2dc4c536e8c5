"""One module a command of `trt-rewriter`: `add_arguments(parser)` and `run(arguments) -> exit status`."""
