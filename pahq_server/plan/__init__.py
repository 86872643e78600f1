"""What serving models will take, told before anything is loaded.

``weights`` and ``work`` are arithmetic on architectures and shapes, ``planning`` puts it together, ``text``
says it.
"""
