"""Resource plan of a configuration (``make plan``): memory, hours, disk and money before a card is rented.

:mod:`oof.plan.card_settings` finds the settings that fit on a card, :mod:`oof.plan.members` plans each member and the
student with them, and :mod:`oof.plan.totals` adds up the stages.
Parameters, memory and operations come from :mod:`oof.model.cost_model` (no weights are downloaded), token counts from
a sample of the real battles, or from the arena's lengths where no data are set.
"""

from __future__ import annotations

from oof.plan.document import plan_document
from oof.plan.members import Plan, make_plan
from oof.plan.text import format_plan
from oof.plan.totals import Totals, plan_totals

__all__ = ["Plan", "Totals", "format_plan", "make_plan", "plan_document", "plan_totals"]
