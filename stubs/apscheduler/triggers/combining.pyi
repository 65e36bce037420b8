from apscheduler.triggers.base import BaseTrigger

class BaseCombiningTrigger(BaseTrigger):
    triggers: list[BaseTrigger]
    jitter: int | None

class AndTrigger(BaseCombiningTrigger): ...
class OrTrigger(BaseCombiningTrigger): ...
