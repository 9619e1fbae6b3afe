"""The kit for adding an exchange: a scaffold, a lint, a look at one page, golden fixtures."""
