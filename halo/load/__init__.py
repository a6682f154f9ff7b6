"""`halo load`: a harness that puts a halo under load from outside, as apps do, and says what it did, at what price, and whether all of it held.

The way of a run: `command.py` reads what was asked for (`plan.py`), `target.py` finds the halo and its keys, `conductor.py` plays the run:
people are made up and paired (`people.py`), worker processes (`crew.py` here, `worker.py` there) take shares of them and speak through
lean sockets (`wires.py`). What they saw is booked (`ledger.py`), measured (`hdr.py`, `meter.py`), judged (`verdict.py`) and told
(`progress.py`, `record.py`, `page.py`). The server must never import from here. Read next: `halo/load/plan.py`.
"""
