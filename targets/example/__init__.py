"""A complete backend for a fictional chip, ``example/one``: how to write a backend, and the tests' double.

Read ``backend.py`` beside ``pocketport.targets.contract``. A real backend puts a vendor's compiler where
``compiler.py`` is and a vendor's runtime where ``runtime.py`` is; everything else has this shape.
"""

from pocketport.targets.example.backend import ExampleBackend

backend = ExampleBackend()
