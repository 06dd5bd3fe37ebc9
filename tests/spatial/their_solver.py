"""Microsoft's scheduler, without diffusers: what it takes of that is a record of its own settings."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace


@functools.cache
def their_solver(checkout: str):
    """FlowUniPCMultistepScheduler of a checkout of github.com/microsoft/LatentSpatialMemory."""

    def register_to_config(init):
        @functools.wraps(init)
        def recorded(self, *args, **kwargs):
            settings = inspect.signature(init).bind(self, *args, **kwargs)
            settings.apply_defaults()
            self.config = SimpleNamespace(**settings.arguments)
            init(self, *args, **kwargs)

        return recorded

    parts = {"diffusers": {}, "diffusers.schedulers": {},
             "diffusers.configuration_utils": {"ConfigMixin": object, "register_to_config": register_to_config},
             "diffusers.schedulers.scheduling_utils": {
                 "KarrasDiffusionSchedulers": (), "SchedulerMixin": type("S", (), {}),
                 "SchedulerOutput": SimpleNamespace},
             "diffusers.utils": {"deprecate": None, "is_scipy_available": lambda: False}}
    before = {name: sys.modules.get(name) for name in parts}
    for name, values in parts.items():
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(values)
    try:
        spec = importlib.util.spec_from_file_location(
            "mirage_flow_match", Path(checkout) / "src" / "mirage" / "spatia" / "flow_match.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        for name, old in before.items():
            sys.modules.pop(name) if old is None else sys.modules.update({name: old})
    return module.FlowUniPCMultistepScheduler
