# Written by braintum_register; removed by: braintum_register --undo
"""Makes braintum's trainers visible to nnU-Net, which looks for classes only in modules on disk."""

try:
    from braintum.commands.lookup import classes
except ModuleNotFoundError as error:  # braintum was uninstalled: nnU-Net goes on without it
    if error.name not in ("braintum", "braintum.commands", "braintum.commands.lookup"):
        raise
else:
    globals().update(classes("trainers"))
