"""halo: the server behind paid, timed, one-to-one chat.

Five words carry the whole house. A *session* (`halo/session.py`) is one paid talk between a customer and a mitra, its clock kept as
accounts in milliseconds. An *event* (`halo/events.py`) is something that happened to it. A *step* (`halo/rules.py`) is what the rules
table makes of an event: the session afterwards and its effects. An *effect* (`halo/effects.py`) is what the step's one transaction
writes, or what is said after it. An *actor* (`halo/actors/session.py`) is the one Trio task that owns a living session: it gathers
facts, steps, commits, and only then speaks.

Read in this order: session, events, effects, rules, extension; then actors/session.py, actors/decider.py and store/sessions.py, which run them;
then store/journal.py and net/connection.py, the way of a message; then server.py, which opens it all and closes it in reverse.
"""

__version__ = "0.1.0"
