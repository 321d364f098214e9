"""The commands of the CLI, one module each with `run(args, session) -> exit code`."""
