"""Asyncio client for KIE.AI's WAV conversion."""
