"""Writes the parts of the documentation that come from the code.

A page below ``docs/`` may hold blocks such as::

    <!-- generated: configuration -->
    ...
    <!-- end generated -->

``python -m tools.docs --write`` fills every block; ``--check`` fails if one is out of date.
"""
