"""The same training through zarrpipe and through a library's own loader: losses, time, wait."""
