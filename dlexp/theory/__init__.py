"""Closed forms that figures and tests compare with."""
