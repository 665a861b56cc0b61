"""What is on disk: names, metadata, configs, and the rule of the commit log."""
