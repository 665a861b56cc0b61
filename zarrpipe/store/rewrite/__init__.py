"""Delete, defragment, merge and compact."""
