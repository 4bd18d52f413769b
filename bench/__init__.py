"""Numbers with their conditions: latency, load, decoding, damaged pictures, and checkpoints of
full-size shapes to measure on.

May import: ``engine``, ``service``, and the peers it measures, lazily. It is imported by nobody
but the command line, and by the tests.
"""

__all__: list[str] = []
