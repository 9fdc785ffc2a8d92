"""The live view: running and finished runs in the browser, read-only, from the files that the stages write.

`server.py` answers on loopback; `place.py` is the only way to a file; `runs.py`, `halves.py` and `training.py` read what
is there; `pages.py` writes it down. Light on purpose (no torch): it runs beside a training.
"""
