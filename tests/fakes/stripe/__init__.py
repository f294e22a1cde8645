"""A stateful stand-in for Stripe, for tests and for `make up STRIPE=fake`. Never shipped, never
trusted.

It checks parameters against the SDK's own types, so that it follows each upgrade, keeps
idempotency keys, has a clock that can be moved, signs webhooks that can be duplicated,
reordered and dropped, and can fail after it has acted.
"""
