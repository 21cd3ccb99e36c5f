"""The resident process that starts and watches the runs of one data folder.

It outlives the server. Only the standard library and little of it may be imported here: every import is memory that
stays. `main.py` is started by path.
"""
