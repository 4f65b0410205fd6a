"""An asyncio client for MusicGPT stem extraction."""
