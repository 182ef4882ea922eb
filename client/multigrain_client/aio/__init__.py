"""The asyncio client. ``multigrain_client.sync`` is generated from it by ``make sync-client``,
except for ``transport.py`` and ``bulk.py``."""
