"""Bridges to other libraries; each is loaded by those who ask for it."""
