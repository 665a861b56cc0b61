"""Writers that share a parent: names, batch ids over all parts, and recipes of sinks."""
