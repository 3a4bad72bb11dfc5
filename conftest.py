"""Strict by default: four devices, no silent broadcasting between ranks.

It stands beside the package so that its doctests run under it too.
"""

import os

# In the environment, for the processes that tests start as well.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax

jax.config.update('jax_num_cpu_devices', 4)
jax.config.update('jax_numpy_rank_promotion', 'raise')

# The scripts that recorded the golden values import the peers.
collect_ignore = ['tests/golden']
