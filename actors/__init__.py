"""Meaning: entities, handlers, envelopes, mailbox, codec. Imports nothing of ours."""
