"""Tests mirror the wings; everything may be imported here."""
