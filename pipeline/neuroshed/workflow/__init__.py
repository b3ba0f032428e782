"""The YAML a user writes, checked, and the stages that follow from it."""
