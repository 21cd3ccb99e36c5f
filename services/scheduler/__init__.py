"""The service `scheduler`: places jobs on nodes, and owns `placements`, `nodes` and the leadership."""
