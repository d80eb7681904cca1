"""Answers of teachers that are not in the train step, and classes as texts."""

from jaxkd.teachers.cache import write_teacher_cache as write_teacher_cache
from jaxkd.teachers.cached import CachedTeacher as CachedTeacher
from jaxkd.teachers.candidates import scored_candidates as scored_candidates
from jaxkd.teachers.retokenized import retokenized as retokenized
from jaxkd.teachers.served import ServedTeacher as ServedTeacher
from jaxkd.teachers.targets import TeacherTargets as TeacherTargets
from jaxkd.teachers.targets import network_targets as network_targets
from jaxkd.teachers.targets import variables_fingerprint as variables_fingerprint
from jaxkd.teachers.zero_shot import class_prototypes as class_prototypes
