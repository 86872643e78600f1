"""The client for asyncio: the same calls, with ``await``."""
