"""SchemaHub's core: gap-free market data from exchanges to one Iceberg table.

The modules in the order in which data flows through them:
``errors`` → ``streams`` → ``mappings`` → ``plan`` → ``throttle`` → ``breaker`` → ``exchanges`` → ``fetch`` → ``raw``
→ ``locks`` → ``ledger`` → ``commit`` → ``mirror`` → ``transform`` → ``publish`` → ``query``.
"""

SCHEMA_VERSION = 1
"""Version of every payload that crosses a state machine; a newer or older one is refused, never guessed."""
