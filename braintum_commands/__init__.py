"""What all braintum commands share: the link to nnU-Net, version checks, and how errors reach the user.

A leaf: it imports none of the other packages, except by name when nnU-Net looks for their classes.
"""
