"""The Docker runtime: MAPs that are images (`urn:oci:<reference>`), each run a container of the host's daemon.

`runtime.py` is the port; `daemon.py` the way to the daemon, off the event loop, and `watch.py` what is heard from it;
`images.py` pins, pulls and reads images; `container.py` says what a container may; `pause.py` lends network namespaces,
`outside.py` a way out;
`records.py` are our files; `begin.py`, `live.py` and `ending.py` are a run's way; `logs.py` writes what it says.
"""
