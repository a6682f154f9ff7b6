"""The demo: one whole paid session, played for real; `story.py` is the play, `stage.py` the server, `told.py` the telling."""
