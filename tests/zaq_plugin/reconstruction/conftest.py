"""The tiny residual network, students of it, and a small prepared graph."""

from tiny_students import graph_student, make_student, smooth_images, tiny

__all__ = ["graph_student", "make_student", "smooth_images", "tiny"]
