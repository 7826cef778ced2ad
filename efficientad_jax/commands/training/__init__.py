"""The subcommands that make and measure detectors."""
