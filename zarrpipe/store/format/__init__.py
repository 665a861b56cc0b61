"""The on-disk format: names, metadata, configs, and the commit rule."""
