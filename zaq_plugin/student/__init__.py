"""The student: one view of a prepared model and its quantized layers, in every host."""

from zaq_plugin.student.batches import as_call
from zaq_plugin.student.layer import QuantLayer
from zaq_plugin.student.module_student import ModuleStudent
from zaq_plugin.student.view import (
    FloatWeights,
    Student,
    reached_layers,
    register_student,
    student_of,
    twin,
)

__all__ = [
    "FloatWeights",
    "ModuleStudent",
    "QuantLayer",
    "Student",
    "as_call",
    "reached_layers",
    "register_student",
    "student_of",
    "twin",
]
