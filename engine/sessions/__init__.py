"""Networks as sessions: arrays in, arrays out, whatever runtime stands behind.

``base`` holds the protocol and the one door where names, dtypes and shapes are checked; each
other module is one runtime, imported only when a device asks for it; ``devices`` finds out what
really works on this machine.
"""

from engine.sessions.base import Session
from engine.sessions.devices import Device, Finding, open_session, report, select

__all__ = ["Device", "Finding", "Session", "open_session", "report", "select"]
