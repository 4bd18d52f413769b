"""Edgefill's peers, each at work in a process and a virtual environment of its own.

``catalogue`` says what they are, ``environments`` installs them, ``process`` speaks to one from the
measuring side, and ``host`` is the other end. The modules named after a peer are imported by
``host`` only, in that peer's environment; there, of the measuring side's packages, nothing but
``bench`` can be imported. They use the standard library, numpy and the peer.
"""
