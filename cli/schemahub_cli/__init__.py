"""The ``schemahub`` command: the same commands on the local stack and, with ``--stack``, on a deployed one."""
