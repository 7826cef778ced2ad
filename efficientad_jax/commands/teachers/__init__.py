"""The subcommands that convert teachers."""
