"""The invariants of spec 5 as questions to Postgres: no row means that it holds.

The same file is run by the demo, the tests, and by hand with psql (`scripts/check_invariants.sql`). It only reads. Read next:
`halo/store/invariants.sql`.
"""

from collections.abc import Mapping
from importlib import resources

from halo.store.postgres import Postgres
from halo.store.queries import Query, parse_queries

SHOWN_AT_MOST = 5
"""Rows shown for each broken invariant: enough to look into, not a flood."""


def load_invariants() -> Mapping[str, Query]:
    source = resources.files("halo.store") / "invariants.sql"
    return parse_queries(source.read_text(encoding="utf-8"), "invariants.sql")


INVARIANTS = load_invariants()


async def find_violations(db: Postgres) -> tuple[int, list[str]]:
    """How many invariants were asked for, and a sentence for each place where one is broken."""
    violations = []
    for name, query in INVARIANTS.items():
        rows = await db.fetch_all(query)
        violations += [f"{name}: {row.subject} {row.fact}" for row in rows[:SHOWN_AT_MOST]]
        if len(rows) > SHOWN_AT_MOST:
            violations.append(f"{name}: and {len(rows) - SHOWN_AT_MOST} more")
    return len(INVARIANTS), violations
