"""Losses against proxies of the classes."""

from retrieval_jax.losses.proxy import margin_rows, proxy_rows
from retrieval_jax.losses.rows import Loss

LOSSES: dict[str, Loss] = {**margin_rows.LOSSES, **proxy_rows.LOSSES}
