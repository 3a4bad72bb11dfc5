"""Strict by default: four devices, no silent broadcasting between ranks."""

import jax

jax.config.update('jax_num_cpu_devices', 4)
jax.config.update('jax_numpy_rank_promotion', 'raise')
