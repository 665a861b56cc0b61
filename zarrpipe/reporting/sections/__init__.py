"""The parts of a report under their headings."""
