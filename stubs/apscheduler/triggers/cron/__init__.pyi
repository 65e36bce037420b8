from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.cron.fields import BaseField

class CronTrigger(BaseTrigger):
    fields: list[BaseField]
