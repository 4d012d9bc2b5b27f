"""Operators: what buttons, menus, dropped files and scripts do."""
