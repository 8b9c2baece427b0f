"""The dashboards, in the order in which a person meets them."""

from __future__ import annotations

from grafana.boards.communication import COMMUNICATION
from grafana.boards.compare import COMPARE
from grafana.boards.fleet import FLEET
from grafana.boards.operators import OPERATORS
from grafana.boards.overview import OVERVIEW
from grafana.boards.plugin import PLUGIN
from grafana.boards.roofline import ROOFLINE

BOARDS = (FLEET, OVERVIEW, OPERATORS, COMMUNICATION, ROOFLINE, COMPARE, PLUGIN)
