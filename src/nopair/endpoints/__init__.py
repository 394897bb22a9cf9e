"""Servers of models: OpenAI-compatible endpoints, asked many things at a time.

Knows: how to ask (chat with images, constrained JSON, Yes/No by log-probability, image edits), how to wait when one
is busy, what an answer costs. The key comes from the environment and is in no message and no log.
Refuses to know: what is asked, and why.
"""
