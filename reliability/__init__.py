"""Long campaigns that try to lose, tear or confuse what zarrpipe has acknowledged.

``python -m reliability --help`` says how to run them, docs/reliability.md what they found.
"""
