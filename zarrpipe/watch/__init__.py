"""What `zarrpipe watch` shows: `Watcher` finds the facts, `terminal` and `page` show them.

Stores and logs are read. Nothing is locked and nothing is written.
"""
