"""Reports of stores: what is in them, what is wrong with them, as a page, pictures and numbers."""
