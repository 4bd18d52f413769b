"""Numbers with their conditions: checkpoints of full-size shapes to measure on, damaged pictures.

May import: ``engine``, ``service``, and the peers it measures, lazily. It is imported by nobody
but the command line, and by the tests.
"""

__all__: list[str] = []
