"""Generated modules and data, each asked of jumpstart and of plain torch: right, refused by name, or a fault.

``python -m tests.fuzz`` prints the table, ``python -m tests.fuzz NAME`` one case (shell patterns) with its checks.
"""
