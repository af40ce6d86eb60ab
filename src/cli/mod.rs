//! Parsing and printing: one file a subcommand.
