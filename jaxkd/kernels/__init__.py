"""Operations that save memory or time which XLA alone does not.

Each is a folder: ``reference.py`` says in plain jnp what it means, ``xla.py`` is fast
on every platform, ``tpu.py`` and ``gpu.py`` are Pallas kernels, and ``__init__.py`` has
the public function. Its ``implementation`` is ``"auto"`` (the fastest for the platform
that the program is compiled for, also ahead of time), ``"reference"``, ``"xla"`` or
``"pallas"``.
"""
