"""How the demo tells what happens: one line a step with the time since the curtain rose, or one JSON object for programs."""

import json
import sys
import time
from typing import Any, TextIO

import click


class Teller:
    """Prints steps as they happen; a step is told only after it held."""

    def __init__(self, *, as_json: bool, out: TextIO | None = None) -> None:
        self._as_json = as_json
        self._out = out or sys.stdout
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the teller was made."""
        return time.monotonic() - self._started

    def scene(self, title: str) -> None:
        if not self._as_json:
            click.echo(click.style(f"\n{title}", bold=True), file=self._out)

    def step(self, sentence: str, **details: Any) -> None:
        if self._as_json:
            click.echo(json.dumps({"seconds": round(self.seconds, 3), "step": sentence, **details}), file=self._out)
        else:
            click.echo(f"  {self.seconds:6.2f} s  {sentence}", file=self._out)

    def failed(self, sentence: str) -> None:
        if self._as_json:
            click.echo(json.dumps({"seconds": round(self.seconds, 3), "failed": sentence}), file=self._out)
        else:
            click.echo(
                click.style(f"  {self.seconds:6.2f} s  did not hold: {sentence}", fg="red", bold=True), file=self._out
            )
