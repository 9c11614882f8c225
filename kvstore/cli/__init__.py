"""The ``jotd`` command: flags, logging, and the subcommands."""
