"""What planners decide: presets, memory, reasons; and how their files are written."""
