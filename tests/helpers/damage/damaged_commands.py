"""All commands that read files of others; a test or a benchmark damages one file of what they read."""

from damaged_models import MODELS
from damaged_sources import SOURCES

COMMANDS = (*SOURCES, *MODELS)
BY_NAME = {command.name: command for command in COMMANDS}
